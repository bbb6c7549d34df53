//! The fixture itself: plain containers, without nixenv.

use std::path::Path;

use e2e::containerd::Release;
use e2e::node::{Parts, Runtime, on_a_plain_node};
use rstest::rstest;

#[rstest]
#[case::pinned_containerd_with_runc(Release::Pinned, Runtime::Runc)]
#[case::pinned_containerd_with_crun(Release::Pinned, Runtime::Crun)]
#[case::debians_containerd_with_runc(Release::Debian, Runtime::Runc)]
#[case::debians_containerd_with_crun(Release::Debian, Runtime::Crun)]
fn a_plain_container_runs(#[case] release: Release, #[case] runtime: Runtime) {
    on_a_plain_node(Parts { release, runtime, ..Parts::default() }, |node| {
        node.nerdctl(["run", "--rm", "busybox", "sh", "-c", "echo $0 $PATH; exit 0", "hello"])
            .prints("hello /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        node.nerdctl(["ps", "-aq"]).prints("");
        let id = node.nerdctl(["run", "--detach", "--net", "none", "busybox", "sleep", "60"]).succeeds();
        // Each runtime keeps its state in a file of another name.
        let state = Path::new("/run/containerd/runc/default").join(id.trim());
        assert_eq!(state.join("state.json").exists(), runtime == Runtime::Runc);
        assert_eq!(state.join("status").exists(), runtime == Runtime::Crun);
        let version = node.ctr(["version"]).succeeds();
        assert_eq!(version.contains("  2.4.2"), release == Release::Pinned, "{version}");
    });
}
