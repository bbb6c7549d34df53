// Package conformance asks the daemon what containerd asks of a snapshotter: containerd's own suite, and tables of what its
// overlayfs does, each of which runs on that overlayfs as well.
//
// tests/run builds it, names the daemon's program in NIXENV_SNAPSHOTTER, and runs it in namespaces of its own.
package conformance

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

func TestContainerdsOwnSuite(t *testing.T) {
	for name, s := range map[string]settings{
		"without options": {},
		"with mapped ids": {remapIDs: true},
	} {
		t.Run(name, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, "overlayfs", daemonPerRoot(s))
		})
	}
}

// daemonPerRoot starts a daemon of its own for each test of the suite.
func daemonPerRoot(s settings) testsuite.SnapshotterFunc {
	return func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d, err := startDaemon(root, s)
		if err != nil {
			return nil, nil, err
		}
		return d.snapshotter(), d.stop, nil
	}
}
