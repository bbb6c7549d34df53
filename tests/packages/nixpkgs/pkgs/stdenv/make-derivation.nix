# `stdenv.mkDerivation`: attributes, or a function of the final attributes.
{ lib, stdenv, system, bash }:

let
  dependencyNames = [
    "depsBuildBuild"
    "nativeBuildInputs"
    "depsBuildTarget"
    "depsHostHost"
    "buildInputs"
    "depsTargetTarget"
    "depsBuildBuildPropagated"
    "propagatedNativeBuildInputs"
    "depsBuildTargetPropagated"
    "depsHostHostPropagated"
    "propagatedBuildInputs"
    "depsTargetTargetPropagated"
  ];

  fromFunction = rattrs:
    let
      finalAttrs = args // { finalPackage = drv; overrideAttrs = drv.overrideAttrs; };
      args = rattrs finalAttrs;
      override = change: fromFunction (final:
        let
          prev = rattrs final;
          applied =
            if !lib.isFunction change then change
            else
              let once = change prev; in
              # `old: {...}` or `final: prev: {...}`
              if lib.isFunction once then change final prev else once;
        in
        prev // applied);
      drv = make override args;
    in
    drv;

  make = overrideAttrs: attrs:
    let
      name = attrs.name or "${attrs.pname}-${attrs.version}";
      outputs = attrs.outputs or [ "out" ];
      # What a dependency is for a builder: its development output.
      dependencies = lib.genAttrs dependencyNames (list:
        map lib.getDev (lib.filter (x: x != null) (lib.flatten (attrs.${list} or [ ]))));
      env = lib.mapAttrs (_: value: if lib.isDerivation value then value else toString value) (attrs.env or { });
      drvAttrs = removeAttrs attrs [ "meta" "passthru" "env" "pos" "checkInputs" "nativeCheckInputs" "__structuredAttrs" "__contentAddressed" ]
        // dependencies // env // {
        inherit name stdenv outputs;
        system = attrs.system or system;
        builder = attrs.realBuilder or bash;
        args = attrs.args or [ "-e" (attrs.builder or ./builder.sh) ];
        userHook = null;
        __ignoreNulls = true;
        strictDeps = attrs.strictDeps or false;
        patches = attrs.patches or [ ];
        doCheck = attrs.doCheck or false;
        doInstallCheck = attrs.doInstallCheck or false;
        configureFlags = attrs.configureFlags or [ ];
      };
      drv = derivation drvAttrs;
      common = {
        inherit overrideAttrs stdenv outputs;
        inherit (drv) drvPath type drvAttrs;
        all = map (output: result.${output}) outputs;
        meta = {
          inherit name;
          available = true;
          outputsToInstall = [ (if lib.elem "bin" outputs then "bin" else lib.head outputs) ];
        } // attrs.meta or { };
        passthru = attrs.passthru or { };
      } // attrs.passthru or { };
      outputOf = output: attrs // env // common // byOutput // {
        inherit name system;
        inherit (drv.${output}) outPath outputName drvPath type;
        outputSpecified = true;
        inherit (dependencies) buildInputs nativeBuildInputs propagatedBuildInputs propagatedNativeBuildInputs;
      };
      byOutput = lib.genAttrs outputs outputOf;
      result = removeAttrs (outputOf (lib.head outputs)) [ "outputSpecified" ] // {
        # The same derivation with its inputs as an output, for a shell.
        inputDerivation = derivation (removeAttrs drvAttrs [ "outputHash" "outputHashAlgo" "outputHashMode" ] // {
          name = "inputs-of-${name}";
          outputs = [ "out" ];
          args = [ "-c" "export > $out" ];
        });
      };
    in
    result;
in
attrs: fromFunction (if lib.isFunction attrs then attrs else (_: attrs))
