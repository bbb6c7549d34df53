package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// raw sends messages as they are: no valid client would.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

func sendRaw(t *testing.T, s subject, method string, message []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var answer []byte
	return s.daemon.conn.Invoke(ctx, "/containerd.services.snapshots.v1.Snapshots/"+method, &message, &answer, grpc.ForceCodec(raw{}))
}

// fieldsOf is a message of texts, numbered as the fields are.
func fieldsOf(texts map[protowire.Number]string) []byte {
	var message []byte
	for number, text := range texts {
		message = protowire.AppendTag(message, number, protowire.BytesType)
		message = protowire.AppendString(message, text)
	}
	return message
}

// isWell looks whether the daemon still works, and has not grown.
func isWell(t *testing.T, s subject) {
	t.Helper()
	prepare(s, t, "is it well?", "")
	if err := s.Remove(t.Context(), "is it well?"); err != nil {
		t.Error(err)
	}
	if peak := peakMiB(t, s.daemon); peak > 256 {
		t.Errorf("the daemon took %d MiB", peak)
	}
}

// peakMiB is the most memory that the daemon has taken.
func peakMiB(t *testing.T, d *daemon) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// lives takes a key and a name through everything that a snapshot can be asked.
func lives(t *testing.T, s subject, key, name string) error {
	ctx := t.Context()
	if _, err := s.Prepare(ctx, key, ""); err != nil {
		return fmt.Errorf("Prepare: %w", err)
	}
	if info, err := s.Stat(ctx, key); err != nil || info.Name != key {
		return fmt.Errorf("Stat gives %q: %w", info.Name, err)
	}
	if _, err := s.Mounts(ctx, key); err != nil {
		return fmt.Errorf("Mounts: %w", err)
	}
	if _, err := s.Usage(ctx, key); err != nil {
		return fmt.Errorf("Usage: %w", err)
	}
	labels := map[string]string{"label of " + key: key}
	updated, err := s.Update(ctx, snapshots.Info{Name: key, Labels: labels}, "labels.label of "+key)
	if err != nil || updated.Labels["label of "+key] != key {
		return fmt.Errorf("Update gives %q: %w", updated.Labels, err)
	}
	if err := s.Commit(ctx, name, key, snapshots.WithLabels(labels)); err != nil {
		return fmt.Errorf("Commit: %w", err)
	}
	if _, err := s.View(ctx, key, name); err != nil {
		return fmt.Errorf("View: %w", err)
	}
	infos := list(t, s)
	if info, ok := infos[key]; !ok || info.Parent != name || infos[name].Labels["label of "+key] != key {
		return fmt.Errorf("the list has %q", info)
	}
	return errors.Join(s.Remove(ctx, key), s.Remove(ctx, name))
}

func TestKeysOfEveryByte(t *testing.T) {
	s := newSubject(t, settings{})
	for b := range 256 {
		key := "key " + string([]byte{byte(b)}) + " end"
		if b < 0x80 {
			if err := lives(t, s, key, "name of "+key); err != nil {
				t.Errorf("%q: %v", key, err)
			}
			continue
		}
		// Alone it is no text, and a client that takes no care may send it anywhere.
		for method, message := range map[string][]byte{
			"Prepare": fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
			"View":    fieldsOf(map[protowire.Number]string{1: "nixenv", 2: "key", 3: key}),
			"Mounts":  fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
			"Commit":  fieldsOf(map[protowire.Number]string{1: "nixenv", 2: "name", 3: key}),
			"Remove":  fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
			"Stat":    fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
			"List":    fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
			"Usage":   fieldsOf(map[protowire.Number]string{1: "nixenv", 2: key}),
		} {
			// gRPC has no class for what cannot be decoded; tonic says Internal.
			if code := status.Code(sendRaw(t, s, method, message)); code != codes.Internal && code != codes.InvalidArgument {
				t.Errorf("%s of %q: %s", method, key, code)
			}
		}
	}
	if left := list(t, s); len(left) != 0 {
		t.Errorf("left are %q", names(left))
	}
	isWell(t, s)
}

func TestKeysThatArePaths(t *testing.T) {
	s := newSubject(t, settings{})
	before := contents(t, s.daemon.prefix)
	for _, key := range []string{
		"/", ".", "..", "../../../../etc/passwd", "/etc/passwd", "new-1", "1", "metadata.db", "a/b/c", "%s%n", "$(id)", "'; DROP TABLE snapshots; --",
		"\u202e\u0301", "e\u0301", "\U0010ffff", "\ufeff", "default/1/" + repeated("k", 60_000), repeated("\u20ac", 10_000),
	} {
		if err := lives(t, s, key, "name: "+key); err != nil {
			t.Errorf("%.80q: %v", key, err)
		}
	}
	// Texts that look the same are not.
	prepare(s, t, "\u00e9", "")
	prepare(s, t, "e\u0301", "")
	if err := errors.Join(s.Remove(t.Context(), "\u00e9"), s.Remove(t.Context(), "e\u0301")); err != nil {
		t.Error(err)
	}
	cleanUp(t, s)
	after := contents(t, s.daemon.prefix)
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
	isWell(t, s)
}

// TestLongLabels: containerd's own limit is 4,096 bytes of name and value, and is not asked of a snapshotter.
func TestLongLabels(t *testing.T) {
	s := newSubject(t, settings{})
	for _, name := range []string{"l", "containerd.io/snapshot/unknown", repeated("name", 1000)} {
		for _, length := range []int{1, 4095, 4096, 4097, 64 << 10, 1 << 20} {
			labels := map[string]string{name: repeated("v", length)}
			if _, err := s.Prepare(t.Context(), "key", "", snapshots.WithLabels(labels)); err != nil {
				t.Errorf("%d bytes: %v", length, err)
				continue
			}
			if info := list(t, s)["key"]; info.Labels[name] != labels[name] {
				t.Errorf("of %d bytes %d are left", length, len(info.Labels[name]))
			}
			if err := s.Remove(t.Context(), "key"); err != nil {
				t.Error(err)
			}
		}
	}
	// Those that mean something are looked at.
	for _, name := range []string{
		snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping,
		"containerd.io/snapshot/nix-closure",
	} {
		for _, value := range []string{"/etc", "..", "/nix/store/..", "/nix/store/../../etc", "\x00", "\n", repeated("/", 4096), repeated("/nix/store/", 400), repeated("x", 1<<20)} {
			for _, with := range []map[string]string{{name: value}, {name: value, "containerd.io/snapshot.ref": "target"}} {
				_, err := s.Prepare(t.Context(), "key", "", snapshots.WithLabels(with))
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s of %.40q: %v", name, value, err)
					s.Remove(t.Context(), "key")
				}
				if err != nil && len(err.Error()) > 16<<10 {
					t.Errorf("%s of %.40q: the message has %d bytes", name, value, len(err.Error()))
				}
			}
		}
	}
	many := map[string]string{}
	for i := range 20_000 {
		many[fmt.Sprint("label ", i)] = "value"
	}
	if _, err := s.Prepare(t.Context(), "key", "", snapshots.WithLabels(many)); err != nil || len(list(t, s)["key"].Labels) != len(many) {
		t.Errorf("%d labels: %v", len(many), err)
	}
	isWell(t, s)
}

func TestLongFilters(t *testing.T) {
	s := newSubject(t, settings{})
	listed(t, s)
	const mib = 1 << 20
	for name, texts := range map[string][]string{
		"a long value":          {"name==" + repeated("x", mib)},
		"a long quoted value":   {`name=="` + repeated("x", mib) + `"`},
		"an open quote":         {`name=="` + repeated("x", mib)},
		"backslashes":           {`name=="` + repeated(`\`, mib) + `"`},
		"a long path":           {repeated("labels.", mib/7) + "x"},
		"many selectors":        {repeated("name==foo,", mib/10) + "name==foo"},
		"many commas":           {repeated(",", mib)},
		"many filters":          strings.SplitAfter(repeated("name==foo\n", mib/10), "\n"),
		"many empty filters":    make([]string, mib/4),
		"spaces":                {repeated(" ", mib)},
		"control characters":    {repeated("\x01", mib)},
		"a nested expression":   {"name~=" + repeated("(", mib/2) + repeated(")", mib/2)},
		"a repeated expression": {"name~=" + repeated("(a*)*", mib/5)},
		"repetitions":           {"name~=(((a{100}){100}){100}){100}"},
		"nested repetitions":    {"name~=" + repeated("(", 200) + "a" + repeated("+)", 200)},
		"classes":               {"name~=" + repeated(`\pL`, 1300)},
		"an expression that others take long for": {"name~=^(a+)+$", "labels.re~=(a|a)*b", "name~=" + repeated("a?", 1000) + repeated("a", 1000)},
		"many expressions":                        {repeated("name~=a{1,500},", 60_000/15) + "name"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, texts...)
			if err != nil && !errdefs.IsInvalidArgument(err) {
				t.Error(err)
			}
			if err != nil && len(err.Error()) > 4096 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
	isWell(t, s)
}

func TestBrokenMessages(t *testing.T) {
	s := newSubject(t, settings{})
	info := func(message []byte) []byte {
		return append(protowire.AppendTag(nil, 2, protowire.BytesType), protowire.AppendBytes(nil, message)...)
	}
	for name, c := range map[string]struct {
		method  string
		message []byte
		codes   []codes.Code
	}{
		"nothing":                         {"Prepare", nil, []codes.Code{codes.InvalidArgument}},
		"noise":                           {"Prepare", []byte{0xff, 0xff, 0xff, 0xff}, []codes.Code{codes.Internal}},
		"a length beyond the end":         {"Stat", []byte{0x12, 0x7f, 'x'}, []codes.Code{codes.Internal}},
		"a length of 64 bits":             {"Stat", []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, []codes.Code{codes.Internal}},
		"noise in a commit":               {"Commit", []byte{0x2a, 0x7f, 'x'}, []codes.Code{codes.Internal, codes.InvalidArgument}},
		"a parent that is a number":       {"Commit", []byte{0x28, 0x01}, []codes.Code{codes.Internal, codes.InvalidArgument, codes.NotFound}},
		"an update of nothing":            {"Update", nil, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}},
		"an update of an empty snapshot":  {"Update", info(nil), []codes.Code{codes.InvalidArgument, codes.NotFound}},
		"an update to an unknown kind":    {"Update", info([]byte{0x0a, 0x01, 'x', 0x18, 0x63}), []codes.Code{codes.InvalidArgument, codes.NotFound, codes.Internal}},
		"a time before the epoch":         {"Update", info([]byte{0x0a, 0x01, 'x', 0x22, 0x0b, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}), []codes.Code{codes.InvalidArgument, codes.NotFound, codes.Internal}},
		"a removal of nothing":            {"Remove", nil, []codes.Code{codes.InvalidArgument, codes.NotFound}},
		"a method that is not there":      {"Format", nil, []codes.Code{codes.Unimplemented}},
		"a field that nobody knows":       {"Stat", fieldsOf(map[protowire.Number]string{2: "x", 1000: "y"}), []codes.Code{codes.NotFound}},
		"17 MiB of key":                   {"Stat", fieldsOf(map[protowire.Number]string{2: repeated("k", 17<<20)}), []codes.Code{codes.OutOfRange, codes.ResourceExhausted}},
		"17 MiB of commit":                {"Commit", fieldsOf(map[protowire.Number]string{2: repeated("k", 17<<20)}), []codes.Code{codes.OutOfRange, codes.ResourceExhausted}},
		"groups in groups in groups":      {"Stat", bytes.Repeat([]byte{0x1b}, 100_000), []codes.Code{codes.Internal, codes.NotFound}},
		"a million labels without a name": {"Prepare", append(fieldsOf(map[protowire.Number]string{2: "labels"}), bytes.Repeat([]byte{0x22, 0x00}, 1_000_000)...), []codes.Code{codes.OK, codes.InvalidArgument}},
	} {
		err := sendRaw(t, s, c.method, c.message)
		found := false
		for _, code := range c.codes {
			found = found || status.Code(err) == code
		}
		if !found {
			t.Errorf("%s: %.200v", name, err)
		}
	}
	isWell(t, s)
}

// TestBrokenConnections opens more of them than the daemon takes, silent and noisy ones, and then a good one.
func TestBrokenConnections(t *testing.T) {
	s := newSubject(t, settings{})
	for i := range 500 {
		conn, err := net.Dial("unix", s.daemon.socket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		switch i % 4 {
		case 1:
			conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		case 2:
			conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + repeated("\xff", 1000)))
		case 3:
			// A frame of settings that is promised and does not come.
			conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x40\x00\x04"))
		}
	}
	isWell(t, s)
	if info, err := os.Stat(s.daemon.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may connect: %v, %v", info.Mode(), err)
	}
}

// TestDeepTree is a tree whose paths are longer than a system call takes, deeper than the daemon may open files, and than the
// stack of its threads.
func TestDeepTree(t *testing.T) {
	d, s, _ := onSmallDisk(t, "size=256m")
	ctx := t.Context()
	const depth, files = 20_000, 128
	if err := unix.Prlimit(d.command.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}, nil); err != nil {
		t.Fatal(err)
	}
	mounts := prepare(s, t, "key", "")
	if err := deepTree(mounts[0].Source, depth); err != nil {
		t.Fatal(err)
	}
	usage, err := s.Usage(ctx, "key")
	if err != nil || usage.Inodes != depth+1 {
		t.Errorf("usage is %v, %v", usage, err)
	}
	if err := s.Commit(ctx, "deep", "key"); err != nil {
		t.Errorf("Commit: %v", err)
	}
	isWell(t, s)
	for _, name := range []string{"deep", "key"} {
		if err := s.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	}
	cleanUp(t, s)
	if left := s.directories(t); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	isWell(t, s)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// deepTree makes directories in directories.
func deepTree(root string, depth int) error {
	parent, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err != nil {
			return err
		}
		if err := unix.Mkdirat(parent, "d", 0o755); err != nil {
			return err
		}
		child, err := unix.Openat(parent, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(parent)
		if err != nil {
			return err
		}
		parent = child
	}
	return unix.Close(parent)
}

// TestMountInside leaves a mount in a snapshot that is removed: what is mounted is not the daemon's.
func TestMountInside(t *testing.T) {
	s := newSubject(t, settings{})
	elsewhere, target := directory(t), filepath.Join(prepare(s, t, "key", "")[0].Source, "target")
	if err := fstest.CreateFile("/kept", nil, 0o600).Apply(elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(target, 0o700), unix.Mount(elsewhere, target, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	cleanUp(t, s)
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "kept")); err != nil {
		t.Errorf("it was removed through the mount: %v", err)
	}
	cleanUp(t, s)
	if left := s.directories(t); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

// TestAttributesOfOverlayfs brings in a layer what only the kernel may write: what makes a directory show another one.
func TestAttributesOfOverlayfs(t *testing.T) {
	s := newSubject(t, settings{})
	mounts := prepare(s, t, "key", "")
	fs := mounts[0].Source
	if err := fstest.Apply(fstest.CreateDir("/d", 0o755), fstest.CreateFile("/d/f", []byte("x"), 0o644), fstest.CreateDir("/opaque", 0o755)).Apply(fs); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{
		{"d", "trusted.overlay.redirect", "/store"},
		{"d", "user.overlay.redirect", "/store"},
		{"", "trusted.overlay.redirect", "/"},
		{"d/f", "trusted.overlay.metacopy", ""},
		{"d/f", "trusted.overlay.redirect", "/etc/shadow"},
		{"d/f", "user.kept", "x"},
		{"opaque", "trusted.overlay.opaque", "y"},
	} {
		if err := unix.Lsetxattr(filepath.Join(fs, c[0]), c[1], []byte(c[2]), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(t.Context(), "layer", "key"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"": "", "d": "", "d/f": "user.kept\x00", "opaque": "trusted.overlay.opaque\x00"} {
		attributes := make([]byte, 1024)
		n, err := unix.Llistxattr(filepath.Join(fs, path), attributes)
		if err != nil || string(attributes[:n]) != want {
			t.Errorf("/%s has the attributes %q, %v", path, attributes[:n], err)
		}
	}
}

// TestManyAtOnce asks for one key, and for one name, from many sides at once: one of them gets it.
func TestManyAtOnce(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		const sides = 32
		ctx := t.Context()
		var lock sync.Mutex
		race := func(call func(side int) error) (won, lost int) {
			var all sync.WaitGroup
			for side := range sides {
				all.Go(func() {
					err := call(side)
					lock.Lock()
					defer lock.Unlock()
					if err == nil {
						won++
					} else if errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
						lost++
					} else {
						t.Error(err)
					}
				})
			}
			all.Wait()
			return
		}
		one := func(call string, won, lost int) {
			if won != 1 || lost != sides-1 {
				t.Errorf("%s: %d succeed and %d fail", call, won, lost)
			}
		}
		won, lost := race(func(int) error { _, err := s.Prepare(ctx, "key", ""); return err })
		one("Prepare", won, lost)
		for side := range sides {
			prepare(s, t, fmt.Sprint("side ", side), "")
		}
		won, lost = race(func(side int) error { return s.Commit(ctx, "name", fmt.Sprint("side ", side)) })
		one("Commit to one name", won, lost)
		won, lost = race(func(side int) error { return s.Commit(ctx, fmt.Sprint("name ", side), "key") })
		one("Commit of one key", won, lost)
		won, lost = race(func(int) error { return s.Remove(ctx, "name") })
		one("Remove", won, lost)
		// A parent that gets a child and is removed at once has either.
		commitEmpty(t, s, "parent", "")
		race(func(side int) error {
			if side == 0 {
				return s.Remove(ctx, "parent")
			}
			_, err := s.Prepare(ctx, fmt.Sprint("child ", side), "parent")
			return err
		})
		for name, info := range list(t, s) {
			if _, err := s.Stat(ctx, info.Parent); info.Parent != "" && err != nil {
				t.Errorf("%s has lost its parent: %v", name, err)
			}
		}
		cleanUp(t, s)
		if got, want := len(s.directories(t)), len(list(t, s)); got != want {
			t.Errorf("%d snapshots have %d directories", want, got)
		}
	})
}
