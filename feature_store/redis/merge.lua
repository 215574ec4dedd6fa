-- The merge of feature_store/merge.py, in the server: one user or one author at a time, so that a write is atomic.
-- redis_functions.py puts before it: LIBRARY, the name of this library, and LAYOUT, the record schema.
--
-- LIBRARY_user    KEYS  user key (hash), tombstone key (string)
--                 ARGV  video records, live records (each view once, in history order, of any number),
--                       attributes_at (int64) and record ("" for none), time to live [ms] (0: none)
--                 -> version; or, when the user is erased and not all that was sent is newer, the tombstone (a
--                 string), and nothing was written: send what is newer
-- LIBRARY_author  KEYS  author key (string)
--                 ARGV  (updated_at (int64), record) of each live room, each room once, ascending (updated_at, live_id)
--                 -> rooms kept
-- LIBRARY_erase   KEYS  tombstone key, user key of every generation
--                 ARGV  erased_until [ms since 1970], time to live of the tombstone [ms] (0: none)
--                 -> how many user keys there were
--
-- What keys hold: redis_keys.py.  All integers are little-endian.  A time is less
-- than 2^52 from 1970, so a double is exact for it; other int64 values are compared by halves where doubles are equal.
-- `p` is where a record starts in a string, from 0.

local sub, find, read, write -- of the libraries string and struct; a library that is being loaded sees no globals
local EXACT = 2 ^ 53
local HALF = 2 ^ 32
local VIDEO, LIVE, AUTHOR, USER = LAYOUT.video, LAYOUT.live, LAYOUT.author, LAYOUT.user

-- Less than 0, 0 or greater: an integer of string a against one of string b; `at` counts from 1.
local function compare(field, a, a_at, b, b_at)
    local x, y = read(field.format, a, a_at), read(field.format, b, b_at)
    if x ~= y or field.size < 8 or (x < EXACT and x > -EXACT) then
        return x - y
    end
    local low_x, high_x = read("<I4i4", a, a_at)
    local low_y, high_y = read("<I4i4", b, b_at)
    return high_x ~= high_y and high_x - high_y or low_x - low_y
end

-- Whether the bytes of a are greater; Lua's own < of strings follows the server's locale.
local function greater(a, b)
    for at = 1, #a do
        local x, y = a:byte(at), b:byte(at)
        if x ~= y then
            return x > y
        end
    end
    return false
end

local function record(kind, s, p)
    return sub(s, p + 1, p + kind.size)
end

local function without(kind, s, p)
    return sub(s, 1, p) .. sub(s, p + kind.size + 1)
end

local function in_progress(kind, s, p)
    local field = kind.known_after
    return sub(s, p + field.at, p + field.last) == field.missing
end

-- known_at, exact for a known_after of any size.
local function known_at(kind, s, p)
    local after = kind.known_after
    if after.size < 8 then
        return read(kind.event_time.format, s, p + kind.event_time.at) + read(after.format, s, p + after.at)
    end
    local time = read(kind.event_time.format, s, p + kind.event_time.at)
    local low, high = read("<I4i4", s, p + after.at)
    return (math.floor(time / HALF) + high) * HALF + (time % HALF + low)
end

-- What orders a view among those of its group: known, or in progress.
local function order_time(kind, s, p)
    if in_progress(kind, s, p) then
        return read(kind.event_time.format, s, p + kind.event_time.at)
    end
    return known_at(kind, s, p)
end

-- Whether the record at p of s comes after record `one`, whose time is given.
local function is_later(kind, s, p, one, time)
    local other = kind.time(kind, s, p)
    if other ~= time then
        return other > time
    end
    return compare(kind.id, s, p + kind.id.at, one, kind.id.at) > 0
end

-- Where a record belongs among those of s from `first` to `last` (not included), which are in order.
local function place(kind, s, first, last, one)
    local size, time = kind.size, kind.time(kind, one, 0)
    if last == first or not is_later(kind, s, last - size, one, time) then
        return last
    end
    local low, high = first / size, last / size - 1
    while low < high do
        local middle = math.floor((low + high) / 2)
        if is_later(kind, s, middle * size, one, time) then
            high = middle
        else
            low = middle + 1
        end
    end
    return low * size
end

local function insert(kind, s, first, last, one)
    local p = place(kind, s, first, last, one)
    return sub(s, 1, p) .. one .. sub(s, p + 1)
end

-- The records of s from `first` to `last`, and those of a list, both in order, as one.
local function weave(kind, s, first, last, list)
    local parts = {}
    for _, one in ipairs(list) do
        local p = place(kind, s, first, last, one)
        parts[#parts + 1] = sub(s, first + 1, p)
        parts[#parts + 1] = one
        first = p
    end
    parts[#parts + 1] = sub(s, first + 1, last)
    return table.concat(parts)
end

-- Where the record with the id of record q of `from` starts in s.
local function find_same(kind, s, from, q)
    local id = sub(from, q + kind.id.at, q + kind.id.last)
    local at = find(s, id, 1, true)
    while at do
        if (at - kind.id.at) % kind.size == 0 then
            return at - kind.id.at
        end
        at = find(s, id, at + 1, true)
    end
end

-- Where the views in progress start.
local function known_end(kind, s)
    local p = #s
    while p > 0 and in_progress(kind, s, p - kind.size) do
        p = p - kind.size
    end
    return p
end

local function join_known_after(kind, a, p, b, time)
    local field = kind.known_after
    local known_a = not in_progress(kind, a, p) and known_at(kind, a, p)
    local known_b = not in_progress(kind, b, 0) and known_at(kind, b, 0)
    if not known_a and not known_b then
        return field.missing
    end
    local known = math.max(known_a or known_b, known_b or known_a)
    if field.size < 8 then
        return write(field.format, math.min(known - time, field.most))
    end
    local low = known % HALF - time % HALF
    local borrow = low < 0 and 1 or 0
    return write("<I4i4", low + borrow * HALF, math.floor(known / HALF) - math.floor(time / HALF) - borrow)
end

local function join_behaviours(field, a, a_at, b)
    local x, y = read(field.format, a, a_at), read(field.format, b, field.at)
    if x == field.least or y == field.least then
        return write(field.format, math.max(x, y))
    end
    return write(field.format, bit.bor(x, y))
end

-- The join of the record at p of a and of record b, both of one view.
local function join(kind, a, p, b)
    local earlier = compare(kind.event_time, a, p + kind.event_time.at, b, kind.event_time.at) <= 0
    local time = earlier and read(kind.event_time.format, a, p + kind.event_time.at)
        or read(kind.event_time.format, b, kind.event_time.at)
    local parts = {}
    for index, field in ipairs(kind.fields) do
        if field == kind.known_after then
            parts[index] = join_known_after(kind, a, p, b, time)
        elseif field == kind.behaviours then
            parts[index] = join_behaviours(field, a, p + field.at, b)
        else
            local from_a = compare(field, a, p + field.at, b, field.at) >= 0
            if field == kind.event_time then
                from_a = earlier
            end
            parts[index] = from_a and sub(a, p + field.at, p + field.last) or sub(b, field.at, field.last)
        end
    end
    return table.concat(parts)
end

-- Views that are not in s: those known, and those in progress.
local function add(kind, s, known, going_on)
    local boundary = known_end(kind, s)
    return weave(kind, s, 0, boundary, known) .. weave(kind, s, boundary, #s, going_on)
end

local function merge_one(kind, s, one)
    local p = find_same(kind, s, one, 0)
    if p then
        if record(kind, s, p) == one then
            return s
        end
        one = join(kind, s, p, one)
        s = without(kind, s, p)
    end
    local boundary = known_end(kind, s)
    if in_progress(kind, one, 0) then
        return insert(kind, s, boundary, #s, one)
    end
    return insert(kind, s, 0, boundary, one)
end

-- Both groups of views at most as long as they may be.
local function truncate(kind, s)
    local boundary = known_end(kind, s)
    local spare = math.max(#s - kind.spare * kind.size, boundary)
    local oldest = math.max(boundary - kind.length * kind.size, 0)
    if oldest == 0 and spare == boundary then
        return s
    end
    return sub(s, oldest + 1, boundary) .. sub(s, spare + 1)
end

-- A stored string, or "" when it is not of whole records, so that new ones mend it.
local function whole(kind, s, key)
    if s and #s % kind.size ~= 0 then
        redis.log(redis.LOG_WARNING, LIBRARY .. ": " .. key .. " starts anew: " .. #s .. " bytes are no whole records")
        return ""
    end
    return s or ""
end

-- The same of a field of a user, which is removed, since what is sent may not replace it.
local function whole_field(kind, s, key, field)
    local kept = whole(kind, s, key)
    if s and kept == "" then
        redis.call("HDEL", key, field)
    end
    return kept
end

local function merge_history(kind, s, sent)
    if s == "" then
        return truncate(kind, sent)
    end
    if s == sent then
        return s
    end
    if #sent == kind.size then
        return truncate(kind, merge_one(kind, s, sent))
    end
    local known, going_on, again = {}, {}, {}
    for q = 0, #sent - 1, kind.size do
        local one = record(kind, sent, q)
        local list = find_same(kind, s, one, 0) and again or in_progress(kind, one, 0) and going_on or known
        list[#list + 1] = one
    end
    s = add(kind, s, known, going_on)
    for _, one in ipairs(again) do
        s = merge_one(kind, s, one)
    end
    return truncate(kind, s)
end

-- Whether all events are newer than a time.
local function all_after(kind, s, time)
    for p = 0, #s - 1, kind.size do
        if read(kind.event_time.format, s, p + kind.event_time.at) <= time then
            return false
        end
    end
    return true
end

-- Of two (time, record) of one size, whether the second is to stay.
local function is_newer(stored, sent)
    local said_stored, said = read("<i8", stored), read("<i8", sent)
    if said ~= said_stored then
        return said > said_stored
    end
    return greater(sub(sent, 9), sub(stored, 9))
end

-- Versions of a user grow even when the user was away, because a new one starts at the time [us].
local function next_version(n)
    local number = n and tonumber(n)
    if number then
        return number + 1
    end
    local now = redis.call("TIME")
    return tonumber(now[1]) * 1e6 + tonumber(now[2])
end

local function merge_user(keys, args)
    local key = keys[1]
    local video, live, attributes = args[1], args[2], args[3]
    local erased_until = redis.call("GET", keys[2])
    if erased_until then
        local time = tonumber(erased_until)
        local said_after = attributes == "" or read("<i8", attributes) > time
        if not (said_after and all_after(VIDEO, video, time) and all_after(LIVE, live, time)) then
            return erased_until
        end
    end
    local stored = redis.call("HMGET", key, "n", "v", "l", "a")
    local version = next_version(stored[1])
    local video_stored = whole_field(VIDEO, stored[2], key, "v")
    local live_stored = whole_field(LIVE, stored[3], key, "l")
    local own = whole_field(USER, stored[4], key, "a")
    local fields = { "n", string.format("%.0f", version) }
    if video ~= "" then
        fields[3], fields[4] = "v", merge_history(VIDEO, video_stored, video)
    end
    if live ~= "" then
        fields[#fields + 1], fields[#fields + 2] = "l", merge_history(LIVE, live_stored, live)
    end
    if attributes ~= "" and (#own ~= USER.size or is_newer(own, attributes)) then
        fields[#fields + 1], fields[#fields + 2] = "a", attributes
    end
    redis.call("HSET", key, unpack(fields))
    if args[4] ~= "0" then
        redis.call("PEXPIRE", key, args[4])
    end
    return version
end

local function merge_author(keys, args)
    local sent = args[1]
    local stored = redis.call("GET", keys[1])
    local s = whole(AUTHOR, stored, keys[1])
    for q = 0, #sent - 1, AUTHOR.size do
        local one = record(AUTHOR, sent, q)
        local p = find_same(AUTHOR, s, one, 0)
        if not p then
            s = insert(AUTHOR, s, 0, #s, one)
        elseif is_newer(record(AUTHOR, s, p), one) then
            s = without(AUTHOR, s, p)
            s = insert(AUTHOR, s, 0, #s, one)
        end
    end
    s = sub(s, math.max(#s - AUTHOR.length * AUTHOR.size, 0) + 1)
    if s ~= stored then
        redis.call("SET", keys[1], s)
    end
    return #s / AUTHOR.size
end

local function erase(keys, args)
    local tombstone = keys[1]
    local stored = redis.call("GET", tombstone)
    if not stored or tonumber(stored) < tonumber(args[1]) then
        redis.call("SET", tombstone, args[1])
    end
    if args[2] ~= "0" then
        redis.call("PEXPIRE", tombstone, args[2])
    end
    return redis.call("UNLINK", unpack(keys, 2))
end

local function entry(work)
    return function(keys, args)
        if not sub then
            sub, find, read, write = string.sub, string.find, struct.unpack, struct.pack
        end
        return work(keys, args)
    end
end

VIDEO.time, LIVE.time = order_time, order_time
AUTHOR.time = function(_, s, p)
    return (read("<i8", s, p + 1))
end

redis.register_function(LIBRARY .. "_user", entry(merge_user))
redis.register_function(LIBRARY .. "_author", entry(merge_author))
redis.register_function({
    function_name = LIBRARY .. "_erase",
    callback = entry(erase),
    flags = { "allow-oom" }, -- because it makes room
})
