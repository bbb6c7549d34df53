# Node.js. Debian's loads a part of its own library from /usr/share/nodejs at
# start; a small library before all others turns those look-ups to $out.
{ lib, pkgs, debian }:

let
  inherit (debian) fromDebs matching source upstreamVersion;

  redirect = pkgs.gccStdenv.mkDerivation {
    name = "node-redirect";
    buildCommand = ''
      mkdir -p $out/lib
      cc -O2 -shared -fPIC -o $out/lib/libredirect.so ${./nodejs-redirect.c} -ldl
    '';
  };
in
fromDebs {
  pname = "nodejs";
  debs = [ "nodejs" ] ++ matching "libnode[0-9]+|node-(acorn|busboy|cjs-module-lexer|undici|xtend)";
  version = upstreamVersion (source "nodejs").version;
  inherit redirect;
  extra = ''
    mkdir -p libexec
    mv bin/node libexec/node
    rm -rf bin include lib/node_modules etc
    mkdir bin
    cp $redirect/lib/libredirect.so lib/libredirect.so
    chmod u+w lib/libredirect.so
    mv libexec/node bin/node
    rmdir libexec
    # It finds the tree beside itself: lib/../share/nodejs.
    "$patchelf" --add-needed libredirect.so bin/node
    "$patchelf" --set-rpath "$out/lib:$("$patchelf" --print-rpath bin/node)" bin/node
    ln -s node bin/nodejs
  '';
  meta.mainProgram = "node";
}
