#!/usr/bin/env bash
# Sourced by the other scripts: makes .venv in the project's root and installs into it, or finds it there already.
#   environment requirements.txt      # sets PYTHON
environment() {
    local requirements=$1 stamp wanted
    local base=${BASE_PYTHON:-python3}
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: Python 3.10 or newer is needed; name one with BASE_PYTHON=/path/to/python3" >&2
        exit 2
    fi
    PYTHON=$PWD/.venv/bin/python
    stamp=$PWD/.venv/installed-$requirements
    wanted=$(cat requirements*.txt requirements.lock | cksum)
    if [ ! -x "$PYTHON" ]; then
        echo "making a virtual environment in .venv"
        "$base" -m venv .venv || { echo "error: python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $requirements at the versions of requirements.lock (about 90 s)"
        # The locked versions need Python 3.11; with 3.10 the newest that suit it are taken.
        local lock=(-c requirements.lock)
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || lock=()
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" "${lock[@]}"
        echo "$wanted" >"$stamp"
    fi
}
