#!/usr/bin/env bash
# Build the environment of a real NDIF server: install.sh FOLDER. Takes minutes; done once.
#
# ndif 0.1.2 asks for Python 3.12; what is used of it here runs on 3.11 as well, so it alone is
# installed without that bound. Its dependencies are named here for the same reason.
set -euo pipefail
folder=${1:?folder of the environment}
ready="$folder/.ready-1"
[ -f "$ready" ] && exit 0
command -v redis-server >/dev/null || {
  echo "redis-server is missing: installing Debian's package"
  apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server
}
rm -rf "$folder"
${PYTHON:-python3} -m venv "$folder"
# nnsight 0.8.0 is the last that ndif 0.1.2 deploys models with; clients have 0.8.1.
"$folder/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 nnsight==0.8.0 \
  accelerate peft zstandard 'ray[default]' redis 'moto[server]' boto3 fastapi 'uvicorn[standard]' \
  gunicorn python-multipart pydantic click python-dotenv pyyaml
"$folder/bin/python" -m pip install --quiet --no-deps --ignore-requires-python ndif==0.1.2
touch "$ready"
