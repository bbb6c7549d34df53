# What a derivation of mkDerivation runs: the environment, then the build.
# shellcheck shell=bash
# shellcheck source=/dev/null
source "$stdenv/setup"
# shellcheck disable=SC2154
trap "exitHandler" EXIT
genericBuild
