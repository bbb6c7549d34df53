module engines

go 1.26.6

require github.com/moby/buildkit v0.34.2
