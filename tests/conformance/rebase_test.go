package conformance

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
)

// TestRebase commits snapshots with a parent that the commit names (containerd 2.1 and later may do that).
func TestRebase(t *testing.T) {
	for name, c := range map[string]struct {
		prepared, named string // parents
		parent          string // what comes of them
		refused         func(error) bool
		oursOnly        bool // containerd makes it its own parent
	}{
		"none stays none":                         {},
		"a snapshot without one gets it":          {named: "base", parent: "base"},
		"what it has may be named":                {prepared: "base", named: "base", parent: "base"},
		"naming none keeps it":                    {prepared: "base", parent: "base"},
		"it cannot be changed":                    {prepared: "base", named: "other", refused: errdefs.IsInvalidArgument},
		"it cannot be changed to what is unknown": {prepared: "base", named: "unknown", refused: errdefs.IsInvalidArgument},
		"it has to exist":                         {named: "unknown", refused: errdefs.IsNotFound},
		"an active snapshot is none":              {named: "active", refused: errdefs.IsFailedPrecondition},
		"a view is none":                          {named: "view", refused: errdefs.IsFailedPrecondition},
		"it is not the active snapshot itself": {named: "key", refused: func(err error) bool {
			return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
		}},
		"it is not the new snapshot itself": {named: "name", refused: errdefs.IsNotFound, oursOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{}, func(t *testing.T, s subject) {
				if c.oursOnly && !s.isOurs() {
					return
				}
				ctx := t.Context()
				commitLayer(t, s, "base", "", fstest.CreateFile("/below", nil, 0o644))
				commitLayer(t, s, "other", "")
				if _, err := s.Prepare(ctx, "active", ""); err != nil {
					t.Fatal(err)
				}
				if _, err := s.View(ctx, "view", "base"); err != nil {
					t.Fatal(err)
				}
				mounts, err := s.Prepare(ctx, "key", c.prepared)
				if err != nil {
					t.Fatal(err)
				}
				withMounted(t, mounts, func(target string) {
					if err := fstest.CreateFile("/above", nil, 0o644).Apply(target); err != nil {
						t.Fatal(err)
					}
				})
				err = s.Commit(ctx, "name", "key", snapshots.WithParent(c.named))
				if c.refused != nil {
					if !c.refused(err) {
						t.Fatalf("refused with %v", err)
					}
					if info, err := s.Stat(ctx, "key"); err != nil || info.Kind != snapshots.KindActive || info.Parent != c.prepared {
						t.Fatalf("a refused commit leaves %v, %v", info, err)
					}
					if _, err := s.Stat(ctx, "name"); !errdefs.IsNotFound(err) {
						t.Fatalf("a refused commit leaves its name: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if info, err := s.Stat(ctx, "name"); err != nil || info.Parent != c.parent {
					t.Fatalf("%v, %v", info, err)
				}
				mounts, err = s.View(ctx, "child", "name")
				if err != nil {
					t.Fatal(err)
				}
				withMounted(t, mounts, func(target string) {
					if _, err := os.Stat(filepath.Join(target, "above")); err != nil {
						t.Error(err)
					}
					if _, err := os.Stat(filepath.Join(target, "below")); (err == nil) != (c.parent == "base") {
						t.Errorf("the parent's file: %v", err)
					}
				})
				for name := range map[string]bool{"name": true, c.parent: true} {
					if err := s.Remove(ctx, name); name != "" && !errdefs.IsFailedPrecondition(err) {
						t.Errorf("%s has children, and its removal ends with %v", name, err)
					}
				}
			})
		})
	}
}
