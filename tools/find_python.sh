#!/bin/sh
# Prints the Python to install with: the one named as argument, else the first of 3.11 to 3.14 that works here.
# Exit status 1 and advice on standard error if there is none.

needed="Python 3.11 to 3.14 is needed"
seen=""

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# usable PROGRAM: whether it is a Python of these versions that can make virtual environments; else `problem` says why not.
usable() {
    command -v "$1" >/dev/null || { problem="there is no $1"; return 1; }
    version=$(version_of "$1") || { problem="$1 does not run"; return 1; }
    case $version in
        3.11 | 3.12 | 3.13 | 3.14) ;;
        *) problem="$1 is Python $version"; return 1 ;;
    esac
    "$1" -c 'import ensurepip, venv' 2>/dev/null || {
        problem="$1 (Python $version) lacks venv: on Debian and Ubuntu, apt install python$version-venv"
        return 1
    }
}

if [ $# -gt 0 ]; then
    usable "$1" && command -v "$1" && exit
    echo "$needed, but $problem." >&2
    exit 1
fi

for program in python3.11 python3.12 python3.13 python3.14 python3 python; do
    usable "$program" && command -v "$program" && exit
    command -v "$program" >/dev/null && seen="$seen
  $problem"
done
cat >&2 <<MESSAGE
$needed, and none was found.${seen:+ Seen:$seen}
Install one (Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3; macOS: brew install python3),
or name yours: make PYTHON=/path/to/python
MESSAGE
exit 1
