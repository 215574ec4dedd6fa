#!/bin/sh
# compile.sh PREFIX: byte code beside all modules, because a read-only root keeps none that is made later.  It is taken
# as it is, unchecked: files of an image do not change, and builders may change their times.
set -eu
/opt/farm/bin/python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$1"/lib/python3*/site-packages \
    || echo "some modules are left as they are: packages bring such for other versions of Python" >&2
