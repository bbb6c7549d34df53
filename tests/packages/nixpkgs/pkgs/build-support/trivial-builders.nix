# Packages that are a few files: text, scripts, links to other packages.
{ lib, stdenv, stdenvNoCC, gccStdenv, bash, coreutils }:

rec {
  runCommandWith = { stdenv ? stdenvNoCC, name, derivationArgs ? { }, runLocal ? false }: buildCommand:
    stdenv.mkDerivation ({
      inherit name buildCommand;
      enableParallelBuilding = true;
      passAsFile = [ "buildCommand" ] ++ derivationArgs.passAsFile or [ ];
    } // lib.optionalAttrs runLocal { preferLocalBuild = true; allowSubstitutes = false; }
    // removeAttrs derivationArgs [ "passAsFile" ]);
  runCommand = name: derivationArgs: runCommandWith { inherit name derivationArgs; };
  runCommandNoCC = runCommand;
  runCommandLocal = name: derivationArgs: runCommandWith { inherit name derivationArgs; runLocal = true; };
  runCommandCC = name: derivationArgs: runCommandWith { inherit name derivationArgs; stdenv = gccStdenv; };

  writeTextFile = { name, text, executable ? false, destination ? "", checkPhase ? "", meta ? { } }:
    runCommand name
      {
        inherit text executable destination checkPhase meta;
        passAsFile = [ "text" ];
        preferLocalBuild = true;
        allowSubstitutes = false;
      } ''
      target=$out$destination
      mkdir -p "$(dirname "$target")"
      cp "$textPath" "$target"
      [[ -z $executable ]] || chmod +x "$target"
      eval "$checkPhase"
    '';
  writeText = name: text: writeTextFile { inherit name text; };
  writeTextDir = path: text: writeTextFile { inherit text; name = baseNameOf path; destination = "/${path}"; };
  writeScript = name: text: writeTextFile { inherit name text; executable = true; };
  writeScriptBin = name: text: writeTextFile { inherit name text; executable = true; destination = "/bin/${name}"; };
  writeShellScript = name: text: writeTextFile {
    inherit name;
    executable = true;
    text = "#!${bash}/bin/bash\n${text}\n";
  };
  writeShellScriptBin = name: text: writeTextFile {
    inherit name;
    executable = true;
    destination = "/bin/${name}";
    text = "#!${bash}/bin/bash\n${text}\n";
    meta.mainProgram = name;
  };
  writeShellApplication = { name, text, runtimeInputs ? [ ], meta ? { }, checkPhase ? null }: writeTextFile {
    inherit name;
    meta = { mainProgram = name; } // meta;
    executable = true;
    destination = "/bin/${name}";
    text = ''
      #!${bash}/bin/bash
      set -o errexit
      set -o nounset
      set -o pipefail
    '' + lib.optionalString (runtimeInputs != [ ]) ''

      export PATH="${lib.makeBinPath runtimeInputs}:$PATH"
    '' + "\n${text}\n";
  };

  # Links the files of several packages into one directory.
  symlinkJoin = { name, paths, preferLocalBuild ? true, allowSubstitutes ? false, postBuild ? "", ... }@args:
    runCommand name
      (removeAttrs args [ "name" "postBuild" ] // {
        inherit preferLocalBuild allowSubstitutes;
        passAsFile = [ "paths" ];
      }) ''
      mkdir -p $out
      for path in $(cat $pathsPath); do
        cp -rs --no-preserve=mode --remove-destination "$path/." $out/
      done
      ${postBuild}
    '';
  linkFarm = name: entries:
    let list = if lib.isAttrs entries then lib.mapAttrsToList (name: path: { inherit name path; }) entries else entries; in
    runCommand name { preferLocalBuild = true; allowSubstitutes = false; } ''
      mkdir -p $out
      cd $out
      ${lib.concatMapStrings ({ name, path }: ''
        mkdir -p ${lib.escapeShellArg (dirOf name)}
        ln -s ${lib.escapeShellArg path} ${lib.escapeShellArg name}
      '') list}
    '';

  buildEnv = { name, paths, pathsToLink ? [ "/" ], extraOutputsToInstall ? [ ], ignoreCollisions ? false, postBuild ? "", passthru ? { }, meta ? { } }:
    runCommand name
      {
        inherit passthru meta;
        preferLocalBuild = true;
        allowSubstitutes = false;
        paths = lib.concatMap (pkg: [ pkg ] ++ map (output: lib.getOutput output pkg) (lib.filter (output: pkg ? ${output}) extraOutputsToInstall)) (lib.filter (x: x != null) (lib.flatten paths));
        passAsFile = [ "paths" ];
      } ''
      mkdir -p $out
      for path in $(cat $pathsPath); do
        for sub in ${lib.escapeShellArgs pathsToLink}; do
          [ -d "$path$sub" ] || continue
          mkdir -p "$out$sub"
          (cd "$path$sub" && find -L . -type d -exec mkdir -p "$out$sub/{}" \; &&
            find . ! -type d ! -path ./nix-support/\* -print) | while read -r file; do
            if [ -L "$path$sub/$file" ] && [ -d "$path$sub/$file" ]; then
              (cd "$path$sub/$file" && find -L . -type f -print) | while read -r inner; do
                [ -e "$out$sub/$file/$inner" ] || ln -s "$path$sub/$file/$inner" "$out$sub/$file/$inner"
              done
            elif [ ! -e "$out$sub/$file" ] && [ ! -L "$out$sub/$file" ]; then
              ln -s "$path$sub/$file" "$out$sub/$file"
            ${lib.optionalString (!ignoreCollisions) ''
            elif ! cmp -s "$path$sub/$file" "$out$sub/$file"; then
              echo "collision between $path$sub/$file and $(readlink "$out$sub/$file")" >&2
              exit 1
            ''}
            fi
          done
        done
      done
      ${postBuild}
    '';

  makeSetupHook = { name, deps ? [ ], propagatedBuildInputs ? [ ], substitutions ? { }, meta ? { } }: script:
    runCommand name
      (substitutions // { inherit meta; strictDeps = true; }) ''
      mkdir -p $out/nix-support
      cp ${script} $out/nix-support/setup-hook
      chmod u+w $out/nix-support/setup-hook
      ${lib.optionalString (deps ++ propagatedBuildInputs != [ ]) ''
        printf '%s ' ${toString (deps ++ propagatedBuildInputs)} > $out/nix-support/propagated-build-inputs
      ''}
      ${lib.optionalString (substitutions != { }) "substituteAllInPlace $out/nix-support/setup-hook"}
    '';

  emptyFile = runCommand "empty-file" { } "touch $out";
  emptyDirectory = runCommand "empty-directory" { } "mkdir $out";

  # `store-paths` (one a line) and `registration` of a closure.
  closureInfo = { rootPaths }: runCommand "closure-info"
    {
      exportReferencesGraph = lib.concatLists (lib.imap0 (n: path: [ "closure-${toString n}" path ]) rootPaths);
      preferLocalBuild = true;
    } ''
    mkdir $out
    # Of each entry: path, deriver, number of references, the references.
    for graph in closure-*; do
      while read -r path; do
        echo "$path" >> paths
        read -r _ || true
        read -r count
        for ((; count > 0; count--)); do read -r _; done
      done < "$graph"
    done
    sort -u paths > $out/store-paths
  '';
}
