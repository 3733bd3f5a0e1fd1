#!/bin/sh
# Installs the compilers, the simulator and the formatter that are missing, through apt-get as root or with
# passwordless sudo. Where that is impossible it prints the command to run and exits 0, because targets without
# their tools report "not run"; with ISOBIT_REQUIRE_TOOLS=1 it exits 2.
set -u

missing() {
    # Debian keeps what `python3 -m venv` needs in a package of its own.
    [ -d .venv ] || python3 -c "import ensurepip" 2>/dev/null || echo python3-venv
    command -v gcc >/dev/null || echo gcc
    command -v g++ >/dev/null || echo g++
    if command -v arm-none-eabi-gcc >/dev/null; then
        # gcc answers with a path when it has the file, and with the bare name when it has not.
        [ "$(arm-none-eabi-gcc -print-file-name=libc.a)" != libc.a ] || echo libnewlib-arm-none-eabi
    else
        echo gcc-arm-none-eabi libnewlib-arm-none-eabi
    fi
    command -v qemu-system-arm >/dev/null || echo qemu-system-arm
    command -v clang-format >/dev/null || echo clang-format
}

install() { # usage: install [sudo -n] -- package...
    prefix=
    while [ "$1" != -- ]; do prefix="$prefix $1"; shift; done
    shift
    flags="install -y --no-install-recommends"
    # Without an index, or with an outdated one, the first attempt fails: update and try again.
    $prefix env DEBIAN_FRONTEND=noninteractive apt-get $flags "$@" && return
    $prefix apt-get update && $prefix env DEBIAN_FRONTEND=noninteractive apt-get $flags "$@"
}

packages=$(missing | tr '\n' ' ' | sed 's/ $//')
[ -n "$packages" ] || exit 0

if command -v apt-get >/dev/null; then
    echo "installing $packages" >&2
    # $packages is a list of words.
    if [ "$(id -u)" -eq 0 ]; then
        install -- $packages >&2
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        install sudo -n -- $packages >&2
    fi
    packages=$(missing | tr '\n' ' ' | sed 's/ $//')
    [ -n "$packages" ] || exit 0
fi

cat >&2 <<END
isobit: system tools are missing, and could not be installed from here. Run
    sudo apt-get update && sudo apt-get install -y --no-install-recommends $packages
or install the same tools your system's way. Until then the targets that need them are not run.
END
[ "${ISOBIT_REQUIRE_TOOLS:-0}" != 1 ] || exit 2
