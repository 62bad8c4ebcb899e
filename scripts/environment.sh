# Sourced by the other scripts: Python 3.11+ in a virtual environment, with this package and the extras in $1 installed.
# An active environment is used; otherwise .venv beside the sources is made. Sets $bin, where its programs are.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "longthought needs Python 3.11 or newer, and none was found. Install it, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

prepare() {
    local extras=$1 environment python stamp wanted
    environment=${VIRTUAL_ENV:-$root/.venv}
    if [ ! -x "$environment/bin/python" ]; then
        python=$(find_python)
        echo "Making a virtual environment in $environment"
        if ! "$python" -m venv "$environment"; then
            rm -rf "$environment"
            echo "The virtual environment could not be made. On Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        fi
    fi
    bin=$environment/bin
    if ! "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "The Python in $environment is older than 3.11: remove that environment, or leave it (deactivate)" >&2
        return 1
    fi
    # Nothing is installed again (and no network is needed) while what is to be installed stays the same.
    stamp=$environment/.longthought$extras
    wanted="$root $(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing longthought$extras into $environment"
        "$bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras" -c "$root/constraints.txt"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    # Changed C++, or a compiler that was not there before; nothing is compiled twice.
    "$bin/python" "$root/hatch_build.py"
}
