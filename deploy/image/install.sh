#!/bin/sh
# install.sh LOCK...: exactly what the lock files in this folder name, into /opt/farm, an environment without pip.  What
# installs it, builds the code and lists the parts is in /opt/tools, and goes into no image.
# torch.txt has no hashes: each machine takes the build that its index (TORCH_INDEX) offers, and what that build needs.
set -eu
cd "$(dirname "$0")"
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python3 -m venv /opt/tools
/opt/tools/bin/pip install --quiet --require-hashes --no-deps -r build.txt
python3 -m venv --without-pip /opt/farm
into_farm() {
    /opt/tools/bin/pip --python /opt/farm/bin/python3 install --quiet --no-compile "$@"
}
for lock; do
    if [ "$lock" = torch.txt ]; then
        into_farm ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
    else
        into_farm --require-hashes --no-deps -r "$lock"
    fi
done
./compile.sh /opt/farm
