# Modules of dependencies are found by Python.
addPythonPath() {
  addToSearchPathWithCustomDelimiter : PYTHONPATH "$1/@sitePackages@"
}
addEnvHooks "$hostOffset" addPythonPath
# Builds give the same result each time.
export PYTHONHASHSEED=0
export PYTHONNOUSERSITE=1
export DETERMINISTIC_BUILD=1
