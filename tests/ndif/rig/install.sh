#!/usr/bin/env bash
# Build the environment of a real NDIF server: install.sh FOLDER. Takes minutes; done once.
#
# ndif 0.1.2 asks for Python 3.12; what is used of it here runs on 3.11 as well. So everything is
# named, pinned, and installed without asking for more.
set -euo pipefail
folder=${1:?folder of the environment}
here=$(dirname "$0")
ready="$folder/.ready-$(cat "$here"/{install.sh,requirements.txt} | sha256sum | cut -c -12)"
[ -f "$ready" ] && exit 0
echo "building the environment of a real NDIF server in $folder"
rm -rf "$folder"
${PYTHON:-python3} -m venv "$folder"
"$folder/bin/python" -m pip install --quiet torch==2.13.0
"$folder/bin/python" -m pip install --quiet --no-deps --ignore-requires-python \
  --requirement "$here/requirements.txt"
touch "$ready"
