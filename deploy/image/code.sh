#!/bin/sh
# The code in /source as it will lie in /opt/farm, but under /code; with it what the image is made of, as CycloneDX.
set -eu
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
/opt/tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /tmp/wheel /source
/opt/tools/bin/pip --python /opt/farm/bin/python3 install --quiet --no-deps --no-compile --prefix /code /tmp/wheel/*.whl
"$(dirname "$0")"/compile.sh /code
install -m 755 "$(dirname "$0")"/healthy.py /code/bin/farm-healthy
mkdir -p /code/share/farm
/opt/tools/bin/cyclonedx-py environment --pyproject /source/pyproject.toml --mc-type application --output-reproducible \
    --of JSON --output-file /code/share/farm/sbom.cdx.json /opt/farm/bin/python3
