module engines

go 1.26.6

require github.com/pdtpartners/nix-snapshotter v0.4.0
