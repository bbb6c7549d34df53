//! The build environment that is empty, to tell noise.
//!
//! What an environment with nothing in it contains by name and value is not there because of a config. One is realised
//! for each standard environment that configs use, and kept under the name of its derivation.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use environment::cache;
use environment::layout::Layout;
use environment::manifest::{load_sealed, seal};
use environment::settings::Settings;
use environment::store_path::StorePath;

use crate::nix::Nix;
use crate::realise;
use crate::scratch::Scratch;
use crate::variables::BuildEnvironment;

const KIND: &str = "baseline";

/// The variables of the empty environment `derivation`, realised if they are not known yet. An environment is no worse
/// for the lack of a baseline, so what goes wrong is logged.
pub fn load_or_realise(
    layout: &Layout,
    nix: &Nix,
    settings: &Settings,
    scratch: &Scratch,
    derivation: &StorePath,
) -> BTreeMap<String, String> {
    let path = layout.baselines().join(format!("{}.json", derivation.base_name()));
    if let Ok(known) = load_sealed(KIND, &path) {
        return known;
    }
    let variables = match realise::realise(nix, settings, scratch, derivation, |_| ()) {
        Ok(realised) => BuildEnvironment::parse(&realised.json).map(|environment| environment.normalised()),
        Err(error) => {
            tracing::warn!(%derivation, error = %error, "no baseline");
            return BTreeMap::new();
        }
    };
    let variables = variables.unwrap_or_else(|error| {
        tracing::warn!(%derivation, error = %error, "no baseline");
        BTreeMap::new()
    });
    let kept = DirBuilder::new().recursive(true).mode(0o700).create(layout.baselines());
    if let Err(error) = cache::write_durably(&path, &seal(KIND, &variables)) {
        tracing::warn!(%derivation, error = %error, directory = ?kept, "the baseline is not kept");
    }
    variables
}
