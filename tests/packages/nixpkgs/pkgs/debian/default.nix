# Store paths made of Debian packages.
#
# A library package becomes a store path of its own, so that closures share it;
# the C library and what depends on it in a circle are one, `glibc`. Every ELF
# file gets the store's loader and a run path of exactly the store paths it
# needs. The builders run on a static busybox, so nothing of the machine that
# builds is used.
{ lib, system, debian ? import ./sources.nix }:

let
  archs = {
    x86_64-linux = { triple = "x86_64-linux-gnu"; loader = "ld-linux-x86-64.so.2"; };
    aarch64-linux = { triple = "aarch64-linux-gnu"; loader = "ld-linux-aarch64.so.1"; };
  };
  arch = archs.${system} or (throw "the test package set has no packages for ${system}");

  # "1:2.36-9+deb12u14" is upstream's 2.36.
  upstreamVersion = version:
    let
      noEpoch = lib.last (lib.splitString ":" version);
      noRevision = builtins.head (builtins.match "(.*)-[^-]*|([^-]*)" noEpoch);
      plain = if noRevision == null then noEpoch else noRevision;
    in
    builtins.head (builtins.match "([0-9]+(\\.[0-9]+)*[a-z]?).*" plain);

  fetch = { name, url, sha256, ... }@args: derivation ({
    inherit name url;
    builder = "builtin:fetchurl";
    system = "builtin";
    outputHash = sha256;
    outputHashAlgo = "sha256";
    outputHashMode = "flat";
    preferLocalBuild = true;
    urls = [ url ];
    executable = false;
    unpack = false;
  } // removeAttrs args [ "name" "url" "sha256" ]);

  # bin/busybox and a link for each of its programs.
  bootstrap = fetch {
    name = "bootstrap";
    inherit (debian.bootstrap) url sha256;
    outputHashMode = "recursive";
    unpack = true;
  };

  source = name: debian.debs.${name} or
    (throw "the Debian package ${name} is not in this build of the test package set (built with --only quick?)");
  deb = name: fetch {
    name = "${name}-${upstreamVersion (source name).version}.deb";
    inherit (source name) url sha256;
  };

  # Runs a script with the busybox. The result has the attributes of what
  # nixpkgs' mkDerivation gives, as far as users look at them.
  build = { pname, version, script, outputs ? [ "out" ], passthru ? { }, meta ? { }, ... }@args:
    let
      drv = derivation ({
        name = "${pname}-${version}";
        inherit pname version system outputs;
        builder = "${bootstrap}/bin/sh";
        args = [ "-e" script ];
        PATH = "${bootstrap}/bin";
        inherit (arch) triple loader;
        preferLocalBuild = true;
      } // removeAttrs args [ "script" "passthru" "meta" ]);
      withMeta = lib.genAttrs outputs (output: common // {
        inherit (drv.${output}) outPath drvPath type outputName;
      });
      common = drv // withMeta // passthru // {
        meta = { available = true; outputsToInstall = [ (if lib.elem "bin" outputs then "bin" else "out") ]; } // meta;
        overrideAttrs = change: build (args // change args);
      };
    in
    common // { inherit (withMeta.${builtins.head outputs}) outPath outputName; };

  # The Debian packages whose whole name matches a regular expression.
  matching = regex: lib.filter (name: builtins.match regex name != null) (lib.attrNames debian.debs);

  # One store path of one or more Debian packages, with its files where a store
  # path has them: bin, lib, include, share. `extra` runs at the end, in $out.
  fromDebs = { pname, debs ? [ pname ], version ? upstreamVersion (source (lib.head debs)).version, deps ? [ ], extra ? "", ... }@args:
    let
      names = lib.unique (lib.concatMap (name: (source name).depends) debs);
      libraries = map (name: packages.${name}) (lib.subtractLists debs names);
      # By path: several Debian packages may be one store path.
      unique = lib.attrValues (lib.listToAttrs (map (pkg: lib.nameValuePair (builtins.unsafeDiscardStringContext "${pkg}") "${pkg}") ([ glibc ] ++ libraries ++ deps)));
    in
    build ({
      inherit pname version extra;
      script = ./unpack.sh;
      debs = map deb debs;
      deps = unique;
      inherit glibc;
      patchelf = bootstrapPatchelf;
    } // removeAttrs args [ "debs" "deps" ]);

  glibcWith = patchelf: build {
    pname = "glibc";
    version = upstreamVersion (source "libc6").version;
    script = ./glibc.sh;
    debs = map deb [ "libc6" "libgcc-s1" "libcrypt1" ];
    inherit patchelf;
    passthru = { inherit (arch) loader; };
  };
  # The one that the patchelf runs on, and the one for everything else.
  bootstrapGlibc = glibcWith "";
  glibc = glibcWith bootstrapPatchelf;

  # The patchelf of Debian as it is, started through the store's loader.
  bootstrapPatchelf = build {
    pname = "bootstrap-patchelf";
    version = upstreamVersion (source "patchelf").version;
    script = ./patchelf.sh;
    debs = map deb [ "patchelf" "libstdc++6" ];
    glibc = bootstrapGlibc;
  };

  packages = lib.mapAttrs (name: _: fromDebs { pname = name; }) debian.debs // {
    libc6 = glibc;
    libgcc-s1 = glibc;
    libcrypt1 = glibc;
  };
in
{
  inherit arch build fromDebs glibc bootstrap deb matching packages source upstreamVersion;
}
