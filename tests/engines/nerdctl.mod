module engines

go 1.24

require github.com/containerd/nerdctl/v2 v2.0.4
