#!/bin/sh
# Prints the newest Python here that onnxruntime has wheels for; exits 1 where that is the one which is given.
#
#     tools/newest_python.sh python3
set -eu
given=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.14 3.13 3.12; do
    [ "$version" = "$given" ] && exit 1
    for python in "python$version" "$(pyenv prefix "$version" 2>/dev/null)/bin/python$version"; do
        if "$python" -c '' 2>/dev/null; then
            echo "$python"
            exit 0
        fi
    done
done
exit 1
