# The packages, named as in nixpkgs.
{ lib, pkgs, system, config }:

let
  debian = import ../debian { inherit lib system; };
  inherit (debian) fromDebs matching source upstreamVersion;

  # A program: one or more Debian packages, with the store's bash for scripts.
  program = args: fromDebs ({ shell = pkgs.bash; } // args // {
    deps = [ pkgs.bash ] ++ args.deps or [ ];
    meta = { mainProgram = args.pname; } // args.meta or { };
  });
  single = pname: deb: program { inherit pname; debs = [ deb ]; };

  trivial = import ../build-support/trivial-builders.nix {
    inherit lib;
    inherit (pkgs) stdenv stdenvNoCC gccStdenv bash coreutils;
  };
in
trivial // {
  # --- the environment ---

  stdenvNoCC = import ../stdenv {
    inherit lib system;
    inherit (pkgs) bash;
    initialPath = with pkgs; [ coreutils findutils diffutils gnused gnugrep gawk gnutar gzip bzip2 gnumake bash patch xz file ];
  };
  # Unlike in nixpkgs there is no C compiler in the default environment: it
  # would be most of what a first start has to fetch. `gccStdenv` has it.
  stdenv = pkgs.stdenvNoCC;
  gccStdenv = import ../stdenv {
    inherit lib system;
    inherit (pkgs) bash;
    inherit (pkgs.stdenvNoCC) initialPath;
    cc = pkgs.gcc;
  };

  mkShell = lib.makeOverridable (args: import ../build-support/mkshell.nix { inherit lib; inherit (args) stdenv; }) { inherit (pkgs) stdenv; };
  mkShellNoCC = pkgs.mkShell.override { stdenv = pkgs.stdenvNoCC; };

  fetchurl = import ../build-support/fetchurl.nix { inherit lib; };

  makeWrapper = trivial.makeSetupHook { name = "make-wrapper-hook"; } ../build-support/make-wrapper.sh;
  makeBinaryWrapper = pkgs.makeWrapper;

  # --- the base system ---

  inherit (debian) glibc;
  bash = fromDebs {
    pname = "bash";
    extra = "ln -sf bash bin/sh; rm -f bin/bashbug bin/rbash; rm -rf share; rm -rf lib";
    passthru.shellPath = "/bin/bash";
    meta.mainProgram = "bash";
  };
  bashInteractive = pkgs.bash;
  runtimeShell = "${pkgs.bash}/bin/bash";
  coreutils = single "coreutils" "coreutils";
  findutils = single "findutils" "findutils";
  diffutils = single "diffutils" "diffutils";
  gnused = single "gnused" "sed";
  gnugrep = single "gnugrep" "grep";
  gawk = program { pname = "gawk"; extra = "ln -sf gawk bin/awk"; };
  gnutar = single "gnutar" "tar";
  gnumake = single "gnumake" "make";
  gzip = single "gzip" "gzip";
  bzip2 = single "bzip2" "bzip2";
  xz = single "xz" "xz-utils";
  patch = single "patch" "patch";
  file = program {
    pname = "file";
    # The magic file is found through the environment or a compiled-in path.
    extra = ''
      mv bin/file bin/.file-wrapped
      printf '#!%s/bin/bash\nexport MAGIC=''${MAGIC-%s}\nexec -a "$0" %s/bin/.file-wrapped "$@"\n' \
        "$shell" "${debian.packages.libmagic-mgc}/lib/file/magic.mgc" "$out" > bin/file
      chmod +x bin/file
    '';
  };
  which = program {
    pname = "which";
    debs = [ "debianutils" ];
    extra = "mv bin/which.debianutils which; rm -rf bin share; mkdir bin; mv which bin/which";
  };
  less = single "less" "less";
  patchelf = single "patchelf" "patchelf";

  # --- programs ---

  jq = single "jq" "jq";

  python3 = import ./python.nix { inherit lib pkgs debian; };
  python3Packages = pkgs.python3.pkgs;
  python = pkgs.python3;

  nodejs = import ./nodejs.nix { inherit lib pkgs debian; };

  git = program {
    pname = "git";
    extra = ''
      # What is written in Perl or for a Debian system stays out.
      find lib/git-core -type f -o -type l | while read -r file; do
        case $file in *.perl) rm "$file" ;; esac
        IFS= read -r first < "$file" || true
        case $first in '#!'*perl*) rm "$file" ;; esac
      done
      mkdir -p libexec
      mv lib/git-core libexec/git-core
      rm -rf lib var etc bin/git-shell
      for name in git git-receive-pack git-upload-archive git-upload-pack; do
        printf '#!%s/bin/bash\nexport GIT_EXEC_PATH=''${GIT_EXEC_PATH-%s}\nexport GIT_TEMPLATE_DIR=''${GIT_TEMPLATE_DIR-%s}\nexec -a "$0" %s "$@"\n' \
          "$shell" "$out/libexec/git-core" "$out/share/git-core/templates" "$out/libexec/git-core/$name" > "$name.new"
        chmod +x "$name.new"
        rm -f "bin/$name"
        mv "$name.new" "bin/$name"
      done
      # The programs under libexec are one file with many names.
      find libexec/git-core -type l | while read -r link; do
        case $(readlink "$link") in *bin/git | "$out"/bin/git) ln -sf git "$link" ;; esac
      done
      find . -type l ! -exec test -e {} \; -exec rm {} \;
    '';
  };
  curl = single "curl" "curl";
  zlib = import ./zlib.nix { inherit lib debian; };

  cacert = debian.build {
    pname = "nss-cacert";
    version = "0-${upstreamVersion (source "ca-certificates").version}";
    script = ../debian/cacert.sh;
    debs = [ (debian.deb "ca-certificates") ];
    setupHook = ../build-support/cacert-hook.sh;
  };

  # --- C ---

  glibcDev = import ./glibc-dev.nix { inherit lib pkgs debian; };
  binutils-unwrapped = fromDebs {
    pname = "binutils";
    debs = matching "binutils(-.*-linux-gnu)?|libbinutils|libctf.*|libgprofng.*";
    version = upstreamVersion (source "binutils").version;
    extra = ''
      for tool in bin/$triple-*; do
        [ ! -f "$tool" ] || [ -L "$tool" ] || { rm -f "bin/''${tool#bin/$triple-}"; mv "$tool" "bin/''${tool#bin/$triple-}"; }
      done
      rm -f bin/$triple-* bin/gp-* bin/gprofng* bin/dwp bin/*gold
      ln -sf ld.bfd bin/ld
      rm -rf share lib/gprofng lib/ldscripts
      find . -type l ! -exec test -e {} \; -exec rm {} \;
    '';
  };
  binutils = pkgs.binutils-unwrapped;
  gcc-unwrapped = import ./gcc-unwrapped.nix { inherit lib pkgs debian; };
  gcc = import ./gcc.nix { inherit lib pkgs debian; };
  pkg-config = import ./pkg-config.nix { inherit lib pkgs debian; };

  hello = pkgs.callPackage ./hello { stdenv = pkgs.gccStdenv; };

  # --- for measurements ---

  chains = import ./chains.nix { inherit lib debian system; };
}
