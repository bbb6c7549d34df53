package conformance

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// repeated is a text so many times.
func repeated(text string, times int) string { return strings.Repeat(text, times) }

// misuse is a call that must be refused and must change nothing.
type misuse struct {
	call    func(context.Context, snapshots.Snapshotter) error
	refused func(error) bool
}

func preparing(key, parent string, options ...snapshots.Opt) func(context.Context, snapshots.Snapshotter) error {
	return func(ctx context.Context, s snapshots.Snapshotter) error {
		_, prepare := s.Prepare(ctx, key, parent, options...)
		_, view := s.View(ctx, key, parent, options...)
		if reflect.TypeOf(prepare) == nil || reflect.TypeOf(view) == nil {
			return nil
		}
		return same(prepare, view)
	}
}

// same is the second error when both are of one class.
func same(a, b error) error {
	for _, is := range []func(error) bool{errdefs.IsNotFound, errdefs.IsAlreadyExists, errdefs.IsInvalidArgument, errdefs.IsFailedPrecondition} {
		if is(a) != is(b) {
			return errors.New("Prepare says " + a.Error() + ", and View " + b.Error())
		}
	}
	return b
}

func committing(name, key string, options ...snapshots.Opt) func(context.Context, snapshots.Snapshotter) error {
	return func(ctx context.Context, s snapshots.Snapshotter) error { return s.Commit(ctx, name, key, options...) }
}

func removing(key string) func(context.Context, snapshots.Snapshotter) error {
	return func(ctx context.Context, s snapshots.Snapshotter) error { return s.Remove(ctx, key) }
}

func updating(key string, paths ...string) func(context.Context, snapshots.Snapshotter) error {
	return func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Update(ctx, snapshots.Info{Name: key, Parent: "other", Labels: map[string]string{"new": "label"}}, paths...)
		return err
	}
}

func TestMisuse(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		population(t, s)
		before := list(t, s)
		for name, c := range map[string]misuse{
			"prepare what is active":                {preparing("active", "bottom"), errdefs.IsAlreadyExists},
			"prepare what is a view":                {preparing("view", ""), errdefs.IsAlreadyExists},
			"prepare what is committed":             {preparing("bottom", ""), errdefs.IsAlreadyExists},
			"prepare what is committed on itself":   {preparing("bottom", "bottom"), errdefs.IsAlreadyExists},
			"prepare on what is unknown":            {preparing("new", "unknown"), errdefs.IsNotFound},
			"prepare what exists on what is unkown": {preparing("active", "unknown"), errdefs.IsNotFound},
			"prepare on itself":                     {preparing("new", "new"), errdefs.IsNotFound},
			"prepare on an active snapshot":         {preparing("new", "active"), errdefs.IsInvalidArgument},
			"prepare on a view":                     {preparing("new", "view"), errdefs.IsInvalidArgument},
			"commit what is unknown":                {committing("new", "unknown"), errdefs.IsNotFound},
			"commit what is committed":              {committing("new", "top"), errdefs.IsFailedPrecondition},
			"commit a view":                         {committing("new", "view"), errdefs.IsFailedPrecondition},
			"commit over a committed name":          {committing("top", "active"), errdefs.IsAlreadyExists},
			"commit over an active key":             {committing("first", "active"), errdefs.IsAlreadyExists},
			"commit to its own key":                 {committing("active", "active"), errdefs.IsAlreadyExists},
			"commit a view over a committed name":   {committing("top", "view"), errdefs.IsAlreadyExists},
			"remove what is unknown":                {removing("unknown"), errdefs.IsNotFound},
			"remove a parent of an active snapshot": {removing("top"), errdefs.IsFailedPrecondition},
			"remove a parent of a committed one":    {removing("bottom"), errdefs.IsFailedPrecondition},
			"update what is unknown":                {updating("unknown", "labels"), errdefs.IsNotFound},
			"update all of what is unknown":         {updating("unknown"), errdefs.IsNotFound},
			"update the parent":                     {updating("active", "parent"), errdefs.IsInvalidArgument},
			"update the name":                       {updating("active", "name"), errdefs.IsInvalidArgument},
			"update the kind":                       {updating("active", "kind"), errdefs.IsInvalidArgument},
			"update the time of creation":           {updating("active", "created_at"), errdefs.IsInvalidArgument},
			"update a field that is not there":      {updating("active", "label"), errdefs.IsInvalidArgument},
			"update a field without a name":         {updating("active", ""), errdefs.IsInvalidArgument},
			"update labels and then the parent":     {updating("active", "labels.new", "parent"), errdefs.IsInvalidArgument},
			"mount what is unknown": {func(ctx context.Context, s snapshots.Snapshotter) error {
				_, err := s.Mounts(ctx, "unknown")
				return err
			}, errdefs.IsNotFound},
			"mount what is committed": {func(ctx context.Context, s snapshots.Snapshotter) error {
				_, err := s.Mounts(ctx, "top")
				return err
			}, errdefs.IsFailedPrecondition},
			"stat what is unknown": {func(ctx context.Context, s snapshots.Snapshotter) error {
				_, err := s.Stat(ctx, "unknown")
				return err
			}, errdefs.IsNotFound},
			"use what is unknown": {func(ctx context.Context, s snapshots.Snapshotter) error {
				_, err := s.Usage(ctx, "unknown")
				return err
			}, errdefs.IsNotFound},
			"list by a broken filter": {func(ctx context.Context, s snapshots.Snapshotter) error {
				return s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "name==active", "name=")
			}, errdefs.IsInvalidArgument},
		} {
			if err := c.call(t.Context(), s); !c.refused(err) {
				t.Errorf("%s: %v", name, err)
			}
			if after := list(t, s); !reflect.DeepEqual(after, before) {
				t.Fatalf("%s: there was %v, and now there is %v", name, before, after)
			}
		}
		if got := len(s.directories(t)); got != len(before) {
			t.Errorf("%d snapshots have %d directories", len(before), got)
		}
	})
}

// containerd's own database refuses these, too, but as errors of no class.
func TestEmptyNames(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		population(t, s)
		before := list(t, s)
		for name, call := range map[string]func(context.Context, snapshots.Snapshotter) error{
			"prepare": preparing("", ""),
			"commit":  committing("", "active"),
		} {
			if err := call(t.Context(), s); err == nil || (s.isOurs() && !errdefs.IsInvalidArgument(err)) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := list(t, s); !reflect.DeepEqual(after, before) {
			t.Errorf("there was %v, and now there is %v", before, after)
		}
	})
}

// population makes one snapshot of each kind, and one of each kind without a parent: "bottom" and "top" are committed,
// "active" and "view" stand on the latter, "first" and "nothing" on none.
func population(t *testing.T, s subject) {
	t.Helper()
	commitEmpty(t, s, "bottom", "")
	commitEmpty(t, s, "top", "bottom")
	prepare(s, t, "active", "top")
	prepare(s, t, "first", "")
	view(s, t, "view", "top")
	view(s, t, "nothing", "")
}

func TestLabels(t *testing.T) {
	type labels = map[string]string
	for name, c := range map[string]struct {
		had, given labels
		paths      []string
		want       labels
	}{
		"no path means all":                      {labels{"a": "1"}, labels{"b": "2"}, nil, labels{"b": "2"}},
		"no path and no labels clear":            {labels{"a": "1"}, nil, nil, nil},
		"one may be set":                         {labels{"a": "1"}, labels{"b": "2", "c": "3"}, []string{"labels.b"}, labels{"a": "1", "b": "2"}},
		"one may be changed":                     {labels{"a": "1", "b": "2"}, labels{"a": "3"}, []string{"labels.a"}, labels{"a": "3", "b": "2"}},
		"one may be removed":                     {labels{"a": "1", "b": "2"}, nil, []string{"labels.a"}, labels{"b": "2"}},
		"the last may be removed":                {labels{"a": "1"}, nil, []string{"labels.a"}, nil},
		"one that is not there may be removed":   {labels{"a": "1"}, nil, []string{"labels.b"}, labels{"a": "1"}},
		"an empty one is removed":                {labels{"a": "1"}, labels{"a": ""}, []string{"labels.a"}, nil},
		"an empty one is not kept":               {labels{"a": "", "b": "2"}, labels{"c": "3"}, []string{"labels.c"}, labels{"b": "2", "c": "3"}},
		"a name may have dots":                   {nil, labels{"io.x/y.z": "1"}, []string{"labels.io.x/y.z"}, labels{"io.x/y.z": "1"}},
		"all are replaced":                       {labels{"a": "1", "b": "2"}, labels{"c": "3"}, []string{"labels"}, labels{"c": "3"}},
		"all are replaced and then one more set": {labels{"a": "1"}, labels{"c": "3"}, []string{"labels", "labels.a"}, labels{"c": "3"}},
		"several may be set":                     {labels{"a": "1"}, labels{"b": "2", "c": "3"}, []string{"labels.b", "labels.c", "labels.a"}, labels{"b": "2", "c": "3"}},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{}, func(t *testing.T, s subject) {
				ctx := t.Context()
				if _, err := s.Prepare(ctx, "key", "", snapshots.WithLabels(c.had)); err != nil {
					t.Fatal(err)
				}
				before, err := s.Stat(ctx, "key")
				if err != nil {
					t.Fatal(err)
				}
				updated, err := s.Update(ctx, snapshots.Info{Name: "key", Labels: c.given}, c.paths...)
				if err != nil {
					t.Fatal(err)
				}
				after, err := s.Stat(ctx, "key")
				if err != nil {
					t.Fatal(err)
				}
				if !updated.Updated.After(before.Updated) || !updated.Created.Equal(before.Created) {
					t.Errorf("times were %v, %v and are %v, %v", before.Created, before.Updated, updated.Created, updated.Updated)
				}
				for way, got := range map[string]snapshots.Info{"the answer": updated, "Stat": after, "Walk": list(t, s)["key"]} {
					if len(got.Labels)+len(c.want) > 0 && !reflect.DeepEqual(got.Labels, c.want) {
						t.Errorf("%s has %v, not %v", way, got.Labels, c.want)
					}
				}
				// A commit replaces labels; it does not inherit them.
				if err := s.Commit(ctx, "name", "key", snapshots.WithLabels(labels{"own": "1"})); err != nil {
					t.Fatal(err)
				}
				if info, err := s.Stat(ctx, "name"); err != nil || !reflect.DeepEqual(info.Labels, labels{"own": "1"}) {
					t.Errorf("committed: %v, %v", info, err)
				}
			})
		})
	}
}
