//! Injects into the bundle of a container that is about to be created.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use environment::hits;
use environment::hold::{self, Held, Hold};
use environment::inject::{Injection, Poststop, check_mounts, inject_into_spec};
use environment::key::ViewId;
use environment::layout::Layout;
use environment::lookup::{Found, Namespace};
use environment::protocol::{Client, ImageEnvironment, Request as Frame, Response};
use environment::reference::{ShellHookMode, StoreMode, parse_annotations};
use environment::resolve::{places_of_spec, resolve};
use environment::settings::Settings;
use environment::store_path::STORE_DIR;
use environment::view;

use crate::bundle::{self, Config};
use crate::command_line::{CommandLine, Create};
use crate::log::{Level, Log};
use crate::poststop;

/// The longest wait under CRI: the kubelet gives up on `CreateContainer` after two minutes, and tries again.
const CRI_PATIENCE: Duration = Duration::from_secs(90);

/// How long the daemon may take to look up an image's variables.
const IMAGE_PATIENCE: Duration = Duration::from_secs(5);

/// Injects the environment that the container asks for, and returns its hold; `None` when it asks for nothing.
pub fn prepare(line: &CommandLine, create: &Create, log: &Log) -> anyhow::Result<Option<Hold>> {
    let Some(config) = Config::read(&create.bundle, &config_path(create))? else { return Ok(None) };
    let Config { document, spec } = config;
    let Some(annotations) = spec["annotations"].as_object() else { return Ok(None) };
    let under_cri = annotations.contains_key("io.kubernetes.cri.container-type");
    let Some(request) = parse_annotations(annotations)? else { return Ok(None) };
    check_mounts(&spec)?;
    let bundle = fs::canonicalize(&create.bundle)
        .with_context(|| format!("cannot find the bundle {}", create.bundle.display()))?;

    let layout = Layout::node();
    let settings = Settings::load(&layout.settings())?;
    let wait = settings.start.wait();
    let patience = if under_cri { wait.min(CRI_PATIENCE) } else { wait };
    let places = places_of_spec(&bundle, &spec)?;
    let resolved = resolve(&layout, &settings, &request, &places, Some(patience), |_| ())?;
    for warning in &resolved.warnings {
        log.write(Level::Warning, &format!("nixenv: {warning}"));
    }
    let manifest = resolved.manifest;

    let container = hold::name_of(line.root.as_deref(), &create.id);
    let held = Held { id: create.id.clone(), bundle: bundle.clone(), key: manifest.key, view: manifest.view };
    let hold = Hold::acquire(&layout, container, &held)?;
    if resolved.hit {
        // A start does not fail for the sake of a count.
        let _ = hits::add(&layout);
    }
    let store = store_to_show(&layout, request.store, &manifest.view, &places, &hold)?;
    let injection = Injection {
        key: manifest.key,
        variables: manifest.variables,
        allowed: settings.variables.allow,
        overrides: request.overrides,
        shell_hook: manifest.shell_hook.filter(|_| request.shell_hook == ShellHookMode::Run),
        store,
        poststop: Poststop { program: own_program()?, args: poststop::args(&container) },
    };
    let (spec, record) = inject_into_spec(spec, &injection, || {
        let image = image_environment(&layout, &create.id);
        if image.is_none() {
            let message =
                "nixenv: which variables are the image's defaults is not known; the container's values stay";
            log.write(Level::Warning, message);
        }
        image
    })?;
    bundle::replace(&document, &bundle, &spec, record)?;
    Ok(Some(hold))
}

fn config_path(create: &Create) -> PathBuf {
    match &create.config {
        // crun takes it from the working directory, but `config.json` from the bundle (crun's `create.c`).
        Some(config) if config != Path::new("config.json") => config.clone(),
        _ => create.bundle.join("config.json"),
    }
}

/// The directory to show at the container's `/nix/store`. An image that has a store of its own keeps it.
fn store_to_show(
    layout: &Layout,
    mode: StoreMode,
    view: &ViewId,
    places: &[Namespace],
    hold: &Hold,
) -> anyhow::Result<PathBuf> {
    let shown = match mode {
        StoreMode::Closure => view::ensure_mounted(layout, view)?,
        StoreMode::Shared => layout.store(),
    };
    let Some(container) = places.iter().find(|place| place.is_container()) else { return Ok(shown) };
    let Found::Directory(directory) = container.visit(Path::new(STORE_DIR))?.found else { return Ok(shown) };
    if container.names(&directory, Path::new(STORE_DIR))?.is_empty() {
        return Ok(shown);
    }
    anyhow::ensure!(
        mode == StoreMode::Closure,
        "the image has a {STORE_DIR} of its own, which the node's store would hide; \
         leave the annotation nixenv.store=shared out"
    );
    let beside = hold.store();
    let image_store = directory.descriptor().context("cannot use the image's own store")?;
    view::mount_beside(layout, view, image_store, &beside)?;
    Ok(beside)
}

/// The `Env` of the container's image, as containerd knows it. Its shims give the runtime containerd's address and
/// namespace; an engine that does not keeps its images elsewhere.
fn image_environment(layout: &Layout, container: &str) -> Option<Vec<String>> {
    let frame = Frame::ImageEnvironment(ImageEnvironment {
        address: std::env::var("GRPC_ADDRESS").ok()?,
        namespace: std::env::var("NAMESPACE").ok()?,
        container: container.to_owned(),
    });
    let mut client = Client::connect(&layout.socket()).ok()?;
    match client.ask(&frame, None, Some(IMAGE_PATIENCE), |_| ()).ok()? {
        Response::ImageEnvironment(variables) => Some(variables),
        _ => None,
    }
}

/// This program's path, for the poststop hook.
fn own_program() -> anyhow::Result<PathBuf> {
    let program = fs::read_link("/proc/self/exe").context("cannot find this program's own path in /proc")?;
    // It was replaced by a new version since it was started.
    let path = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(path.unwrap_or(program))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(None, "/b/config.json")]
    #[case::the_usual_name(Some("config.json"), "/b/config.json")]
    #[case::another_file(Some("/x/spec.json"), "/x/spec.json")]
    #[case::relative_to_the_working_directory(Some("./config.json"), "./config.json")]
    fn the_spec_is_where_the_runtime_looks(#[case] config: Option<&str>, #[case] expected: &str) {
        let create = Create { bundle: "/b".into(), config: config.map(Into::into), id: "c".into() };
        assert_eq!(config_path(&create).as_os_str(), expected);
    }
}
