# Python with its whole standard library, and `withPackages`.
{ lib, pkgs, debian }:

let
  inherit (debian) fromDebs matching source upstreamVersion;
  debs = matching "python3\\.[0-9]+(-minimal)?|libpython3\\.[0-9]+-(minimal|stdlib)";
  version = upstreamVersion (source (lib.head debs)).version;
  pythonVersion = lib.versions.majorMinor version;

  python = fromDebs {
    pname = "python3";
    inherit debs version;
    shell = pkgs.bash;
    deps = [ pkgs.bash ];
    inherit pythonVersion;
    setupHook = ../build-support/python-hook.sh;
    extra = builtins.readFile ../debian/python.sh;
    passthru = {
      inherit pythonVersion;
      executable = "python${pythonVersion}";
      interpreter = "${python}/bin/python${pythonVersion}";
      libPrefix = "python${pythonVersion}";
      sitePackages = "lib/python${pythonVersion}/site-packages";
      isPy3 = true;
      implementation = "cpython";
      pkgs = packages;
      withPackages = f: environment (f packages);
      buildEnv = args: environment (args.extraLibs or [ ]);
    };
    meta.mainProgram = "python3";
  };

  # A pure Python module of Debian, where Python looks for it.
  module = pname: fromDebs {
    inherit pname;
    debs = [ "python3-${pname}" ];
    inherit pythonVersion;
    extra = ''
      mkdir -p lib/python$pythonVersion
      mv lib/python3/dist-packages lib/python$pythonVersion/site-packages
      rm -rf lib/python3 share bin
    '';
    passthru.pythonModule = python;
  };

  packages = {
    inherit python;
    idna = module "idna";
    six = module "six";
  };

  # Python finds a pyvenv.cfg beside itself, and the modules below it.
  environment = modules: pkgs.runCommand "python3-${version}-env"
    {
      preferLocalBuild = true;
      allowSubstitutes = false;
      inherit modules;
      passthru = { inherit (python) pythonVersion sitePackages pkgs; interpreter = "${python}/bin/python3"; };
      meta.mainProgram = "python3";
    } ''
    mkdir -p $out/bin $out/${python.sitePackages}
    echo "home = ${python}/bin" > $out/pyvenv.cfg
    for name in ${python}/bin/python*; do ln -s $name $out/bin/; done
    for module in $modules; do
      for entry in $module/${python.sitePackages}/*; do ln -s "$entry" $out/${python.sitePackages}/; done
    done
  '';
in
python
