# `fetchurl`: a file whose hash is known.
{ lib }:

{ url ? builtins.head urls
, urls ? [ ]
, hash ? ""
, sha256 ? ""
, sha512 ? ""
, name ? baseNameOf (toString url)
, executable ? false
, ...
}:

derivation {
  inherit name executable;
  url = toString url;
  urls = [ (toString url) ];
  builder = "builtin:fetchurl";
  system = "builtin";
  unpack = false;
  outputHashMode = if executable then "recursive" else "flat";
  outputHashAlgo = if hash != "" then "" else if sha512 != "" then "sha512" else "sha256";
  outputHash =
    if hash != "" then hash
    else if sha512 != "" then sha512
    else if sha256 != "" then sha256
    else lib.fakeSha256;
  preferLocalBuild = true;
}
