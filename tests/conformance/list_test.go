package conformance

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
)

// listed makes snapshots that filters can tell apart.
func listed(t *testing.T, s subject) {
	t.Helper()
	labels := []map[string]string{
		nil,
		{"foo": "true"},
		{"foo": "omg_asdf.asdf-qwer", "bar": "1"},
		{"containerd.io/gc.root": "2026-01-01T00:00:00Z"},
		{"a.b.c": "dots", "a": "none"},
		{`more complex "label"`: "present", `back\slash`: "x"},
		{"value": "too complex, yo", "line": "one\ntwo", "tab": "\t"},
		{"ünïcode": "K", "kelvin": "K", "long s": "ſ", "digit": "٣", "nul": "a\x00b"},
		{"re": "aaa", "re2": "a.a", "re3": "[a]", "upper": "ABC"},
		{"quote": `"'/|`, "empty re": "x"},
	}
	for i, labels := range labels {
		parent := ""
		if i > 2 {
			parent = "committed 0"
		}
		for kind, create := range map[string]func(context.Context, string, string, ...snapshots.Opt) error{
			"active": func(ctx context.Context, key, parent string, options ...snapshots.Opt) error {
				_, err := s.Prepare(ctx, key, parent, options...)
				return err
			},
			"view": func(ctx context.Context, key, parent string, options ...snapshots.Opt) error {
				_, err := s.View(ctx, key, parent, options...)
				return err
			},
			"committed": func(ctx context.Context, name, parent string, options ...snapshots.Opt) error {
				if _, err := s.Prepare(ctx, "tmp", parent); err != nil {
					return err
				}
				return s.Commit(ctx, name, "tmp", options...)
			},
		} {
			if err := create(t.Context(), fmt.Sprintf("%s %d", kind, i), parent, snapshots.WithLabels(labels)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, key := range []string{"foo", "bar", `q"uo'te`, "sha256:0123", "default/1/extract-é", "a,b", "==", "K"} {
		prepare(s, t, key, "committed 0")
	}
}

// fields is what filters see of a snapshot (containerd's core/snapshots/storage).
func fields(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 0:
			return "", false
		case path[0] == "kind":
			return strings.ToLower(info.Kind.String()), true
		case path[0] == "name":
			return info.Name, true
		case path[0] == "parent":
			return info.Parent, true
		case path[0] == "labels":
			value, ok := info.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}

// sameAsContainerd compares what a list finds with what containerd's own filters find among `all`.
func sameAsContainerd(t *testing.T, s subject, all map[string]snapshots.Info, texts ...string) {
	t.Helper()
	found := []string{}
	err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found = append(found, info.Name)
		return nil
	}, texts...)
	filter, wrong := filters.ParseAll(texts...)
	if wrong != nil {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q must be refused (%v), and ends with %v", texts, wrong, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%q: %v", texts, err)
		return
	}
	want := []string{}
	for name, info := range all {
		if filter.Match(fields(info)) {
			want = append(want, name)
		}
	}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("%q finds %q and not %q", texts, found, want)
	}
}

// TestFilters leaves out in what the dialect of expressions is known to differ (the daemon's `filter`).
func TestFilters(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		listed(t, s)
		all := list(t, s)
		for _, texts := range [][]string{
			{}, {""}, {"", "name=="}, {"name==foo", ""},
			{"name==foo"}, {"name==foo", "name==bar"}, {"name==foo,name==bar"}, {"name!=foo"}, {"name~=o+"}, {"name"},
			{"kind==active"}, {"kind==Active"}, {"kind!=view"}, {"kind~=^(view|active)$"}, {"kind==committed,labels.foo"},
			{"parent"}, {`parent==""`}, {`parent!=""`}, {`parent=="committed 0"`}, {"parent==''"}, {"parent~="},
			{"labels"}, {`labels==""`}, {`labels!=""`}, {"labels.foo"}, {"labels.absent"}, {"labels.absent!=x"}, {"labels.absent~=.*"},
			{"labels.absent~=x"}, {`labels.foo==true,kind==view`}, {"labels.foo==omg_asdf.asdf-qwer"},
			{"labels.a.b.c"}, {`labels."a.b.c"`}, {`labels.a."b.c"==dots`}, {`"labels".'a'.b.c`}, {`labels.a\.b`},
			{`labels."containerd.io/gc.root"`}, {`labels."containerd.io/gc.root"==2026-01-01T00:00:00Z`}, {"labels.containerd.io/gc.root"},
			{`labels."more complex \"label\""==present`}, {`labels.'more complex "label"'`}, {`labels."back\\slash"==x`},
			{`labels.value=="too complex, yo"`}, {`labels.value=='too complex, yo'`}, {"labels.value==too complex, yo"},
			{`labels.line=="one\ntwo"`}, {`labels.line~=/one.two/`}, {`labels.line~="one(?s:.)two"`}, {`labels.line~="^two"`}, {`labels.line~="(?m)^two"`},
			{`labels.tab=="\t"`}, {`labels.tab~=\s`}, {`labels.tab=="\x09"`}, {`labels.tab=="\u0009"`}, {`labels.tab=="\011"`},
			{`labels."ünïcode"==K`}, {"labels.ünïcode"}, {`labels."\u00fcn\u00efcode"`}, {`labels."\xc3\xbcn\u00efcode"`}, {`labels.kelvin~=(?i)k`},
			{`labels."long s"~=(?i)s`}, {`labels.digit~=\pN`},
			{`labels.digit~=[[:alnum:]]`}, {`labels.kelvin~=\bK`}, {`labels.upper~=(?i)abc`}, {`labels.upper~=(?i:ABC)`},
			{`labels.nul=="a\x00b"`}, {`labels.nul~=a.b`}, {`labels.nul=="a\000b"`},
			{`labels.re~=a{3}`}, {`labels.re~="a{2,}"`}, {`labels.re~=/a{1,2}/`}, {"labels.re~=a{1001}"}, {"labels.re~=a{1000}"}, {"labels.re~=a{,2}"},
			{`labels.re~="(?P<n>a)+"`}, {`labels.re~="(?<n>a)+"`}, {`labels.re~=(a)\1`}, {`labels.re~=a(?=a)`},
			{`labels.re2~=/\Qa.a\E/`}, {`labels.re2~=a\.a`}, {`labels.re2~=^a.a$`}, {`labels.re2~=\Aa.a\z`}, {`labels.re2~=a\.a\Z`},
			{`labels.re3~=\[a\]`}, {`labels.re3~=[]a]`}, {`labels.re3~=[a`}, {`labels.re3~="[a~~b]"`},
			{`labels.re~=(?U)a+`}, {`labels.re~=\C`}, {`labels.re~=\pL`}, {`labels.re~=\p{Greek}`}, {`labels.re~=\p{Foo}`},
			{`labels.re~=\x61`}, {`labels.re~=\x{61}`}, {`labels.re~=\a`}, {`labels.re~=\_`}, {`labels.re~=\-`},
			{`labels.re~=()`}, {`labels.re~=|`}, {`labels.re~=(|a)`}, {`labels.re~=a|`}, {`labels.re~=*`}, {`labels.re~=)`}, {`labels.re~=/(/`},
			{`labels.quote=="\"'/|"`}, {`labels.quote=='"\'/|'`}, {`labels.quote~=|"'/\||`}, {`labels.quote~=/\//`}, {"labels.re~=|a|"}, {"labels.re~=/a/"}, {"labels.re==/a/"}, {"labels.|foo|==x"},
			{"name==foo,"}, {",name==foo"}, {"labels."}, {"."}, {"labels..foo"}, {"name="}, {"name=foo"}, {"name=== foo"}, {"name===foo"}, {"name!foo"}, {"name<foo"},
			{"name=~foo"}, {"name!~foo"}, {"name == foo"}, {" name==foo"}, {"name==foo "}, {"name==foo bar"}, {"name==\tfoo"}, {"name=="}, {"name==,kind"}, {"name~=,id?=?fbaq"},
			{"==foo"}, {"==" + "=="}, {`name=="=="`}, {"name==!="}, {"name==~="}, {`name==a,b`}, {`name=="a,b"`}, {`"name"==foo`}, {`'name'==foo`}, {`name==f"oo"`}, {`name=="foo`}, {`name=='foo"`},
			{`name=="fo\o"`}, {`name=="\q"`}, {`name=="\'"`}, {`name=='\"'`}, {`name=="\u12"`}, {`name=="\ud800"`}, {`name=="\U00110000"`}, {`name=="\xff"`}, {`name=="` + "\n" + `"`},
			{"unknown"}, {"unknown==x"}, {"unknown!=x"}, {"unknown~=.*"}, {"name.foo==foo"}, {"kind.x"}, {"parent.x.y!=q"}, {"created"}, {"id==1"},
			{"name==é"}, {"name~=é"}, {"é==x"}, {"name~=default/[0-9]+/extract-.*"}, {`name~="default/[0-9]+/extract-.*"`}, {"name==default/1/extract-é"}, {"name==sha256:0123"},
			{"name==K"}, {"name~=(?i)^k$"}, {"na_me"}, {"_name"}, {"9"}, {"name9"}, {"n-a"}, {"a==b==c"}, {"a==b,c==d,e==f"}, {"name==\u2028foo"}, {"name==\u00a0foo"}, {"\ufeffname"},
		} {
			sameAsContainerd(t, s, all, texts...)
		}
	})
}

// TestRandomFilters puts filters together from what their grammar, and that of regular expressions, takes for special.
func TestRandomFilters(t *testing.T) {
	words := strings.Split(`name|kind|parent|labels|foo|bar|.|,|==|!=|~=|"|'|/|\|(|)|[|]|{|}|*|+|?|^|$|a|é|\d|\w|\b|\pL|\x41|\"|\n|1|2|-|_|:| |(?i)|(?:|active|"foo"|labels.foo|name~=|kind==`, "|")
	words = append(words, "|", "\t", "\n", "\x00", "K", "ſ", "name==foo", "labels.re~=")
	random := rand.New(rand.NewSource(1))
	texts := []string{}
	for range 3000 {
		text := ""
		if random.Intn(3) > 0 {
			text = []string{"name~=", "labels.re~=", "labels.", `name=="`, "name~=/"}[random.Intn(5)]
		}
		for range 1 + random.Intn(8) {
			text += words[random.Intn(len(words))]
		}
		texts = append(texts, text)
	}
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		listed(t, s)
		all := list(t, s)
		for _, text := range texts {
			sameAsContainerd(t, s, all, text)
		}
	})
}

// TestLongList is longer than one message may be.
func TestLongList(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		const count = 330
		value := repeated("x", 60<<10)
		for i := range count {
			_, err := s.View(t.Context(), fmt.Sprint(i), "", snapshots.WithLabels(map[string]string{"long": value}))
			if err != nil {
				t.Fatal(err)
			}
		}
		infos := list(t, s)
		if len(infos) != count {
			t.Errorf("%d of %d are listed", len(infos), count)
		}
		for name, info := range infos {
			if info.Labels["long"] != value {
				t.Errorf("the label of %s has %d bytes", name, len(info.Labels["long"]))
			}
		}
	})
}
