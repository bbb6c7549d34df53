# A standard environment: `$stdenv/setup`, the programs that are always on
# PATH, and mkDerivation. `cc` is null where there is no C compiler.
{ lib, system, bash, initialPath, cc ? null, extraNativeBuildInputs ? [ ] }:

let
  platform = lib.systems.elaborate system;
  name = if cc == null then "stdenv-linux-nocc" else "stdenv-linux";
  setup = ''
    export SHELL=${bash}/bin/bash
    initialPath="${lib.concatMapStringsSep " " toString initialPath}"
    defaultNativeBuildInputs="${lib.concatMapStringsSep " " toString (extraNativeBuildInputs ++ lib.optional (cc != null) cc)}"
    defaultBuildInputs=""
    system=${system}
  '' + builtins.readFile ./setup.sh;
  # As in nixpkgs, $stdenv is a directory with the one file.
  drv = derivation {
    inherit name system setup;
    passAsFile = [ "setup" ];
    builder = "${bash}/bin/bash";
    args = [
      "-ec"
      ''
        ${builtins.head initialPath}/bin/mkdir -p $out
        ${builtins.head initialPath}/bin/cp "$setupPath" $out/setup
        ${builtins.head initialPath}/bin/chmod 644 $out/setup
        : # chmod must not be the last: bash would become it, and it closes its
        : # standard error, which Nix takes for the end, before it exits
      ''
    ];
    preferLocalBuild = true;
    allowSubstitutes = true;
  };
  stdenv = drv // {
    inherit name cc initialPath system;
    shell = "${bash}/bin/bash";
    buildPlatform = platform;
    hostPlatform = platform;
    targetPlatform = platform;
    inherit (platform) isLinux isDarwin isUnix isx86_64 isAarch64 is64bit;
    hasCC = cc != null;
    mkDerivation = import ./make-derivation.nix { inherit lib stdenv system; bash = "${bash}/bin/bash"; };
    overrides = _: _: { };
  };
in
stdenv
