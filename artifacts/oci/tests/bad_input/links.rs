//! Layers whose paths and links lead somewhere else, and a place that is taken.

use std::fs;
use std::path::Path;

use iptl_artifacts_oci::UnpackError;

use crate::make::Tar;
use crate::unpack::{Place, expected, tree, unpacked};

#[tokio::test]
async fn absolute_path_stays_inside() {
    let place = Place::new();
    let secret = place.dir.path().join("outside/secret");
    let name = secret.to_str().unwrap();
    place.unpack(&[Tar::new().file(name, "evil").end()]).await.unwrap();
    place.assert_outside_is_untouched();
    assert_eq!(fs::read(place.root().join(name.trim_start_matches('/'))).unwrap(), b"evil");
}

#[tokio::test]
async fn absolute_symlink_as_parent_stays_inside() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let tar = Tar::new().symlink("door", outside.to_str().unwrap()).file("door/secret", "evil");
    // Within the image nothing is where the link leads.
    let error = place.unpack(&[tar.end()]).await.unwrap_err();
    assert!(matches!(error, UnpackError::NotADirectory { layer: 1, .. }), "{error}");
    place.assert_outside_is_untouched();
    assert!(!place.root().exists());
}

#[tokio::test]
async fn relative_symlink_as_parent_stays_inside() {
    let place = Place::new();
    let tar = Tar::new().dir("outside").symlink("a/door", "../../../outside").file("a/door/secret", "inside");
    place.unpack(&[tar.end()]).await.unwrap();
    place.assert_outside_is_untouched();
    assert_eq!(fs::read(place.root().join("outside/secret")).unwrap(), b"inside");
}

#[tokio::test]
async fn symlink_of_a_lower_layer_as_parent_leads_inside() {
    let lower = Tar::new().dir("usr/lib").symlink("lib", "/usr/lib").end();
    let upper = Tar::new().file("lib/x", "x").end();
    let rows = [("lib", "-> /usr/lib"), ("usr", "/"), ("usr/lib", "/"), ("usr/lib/x", "x")];
    assert_eq!(unpacked(&[lower, upper]).await, expected(&rows));
}

#[tokio::test]
async fn file_over_a_symlink_replaces_the_link() {
    let place = Place::new();
    let secret = place.dir.path().join("outside/secret");
    let tar = Tar::new().symlink("f", secret.to_str().unwrap()).file("f", "evil");
    place.unpack(&[tar.end()]).await.unwrap();
    place.assert_outside_is_untouched();
    assert_eq!(tree(&place.root()), expected(&[("f", "evil")]));
}

#[tokio::test]
async fn directory_over_a_symlink_replaces_the_link() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let tar = Tar::new().symlink("d", outside.to_str().unwrap()).dir("d").file("d/secret", "evil");
    place.unpack(&[tar.end()]).await.unwrap();
    place.assert_outside_is_untouched();
    assert_eq!(tree(&place.root()), expected(&[("d", "/"), ("d/secret", "evil")]));
}

#[tokio::test]
async fn hard_link_through_a_symlink_stays_inside() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let tar = Tar::new().symlink("door", outside.to_str().unwrap()).link("stolen", "door/secret");
    let error = place.unpack(&[tar.end()]).await.unwrap_err();
    assert!(matches!(error, UnpackError::HardLink { layer: 1, .. }), "{error}");
    place.assert_outside_is_untouched();
}

#[tokio::test]
async fn hard_link_to_a_symlink_does_not_follow_it() {
    let place = Place::new();
    let secret = place.dir.path().join("outside/secret");
    let target = secret.to_str().unwrap();
    // The second name of the link is replaced, and not what it leads to.
    let tar = Tar::new().symlink("a", target).link("b", "a").file("b", "evil");
    place.unpack(&[tar.end()]).await.unwrap();
    place.assert_outside_is_untouched();
    assert_eq!(tree(&place.root()), expected(&[("a", &format!("-> {target}")), ("b", "evil")]));
}

#[tokio::test]
async fn hard_link_to_nothing_is_named() {
    let error = Place::new().unpack(&[Tar::new().link("a", "missing").end()]).await.unwrap_err();
    assert_eq!(error.to_string(), "layer 1: \"a\" is a hard link to \"missing\", which is not there");
}

#[tokio::test]
async fn whiteout_through_a_symlink_removes_nothing_outside() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    for door in [outside.to_str().unwrap(), "../outside"] {
        let lower = Tar::new().symlink("door", door).end();
        let upper = Tar::new().file("door/.wh.secret", "").file("door/.wh..wh..opq", "").end();
        let place = Place { dir: tempfile::tempdir_in(place.dir.path().join("outside/..")).unwrap() };
        let _ = place.unpack(&[lower, upper]).await;
    }
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"untouched");
}

#[tokio::test]
async fn proc_links_are_not_followed() {
    let place = Place::new();
    let tar = Tar::new().symlink("door", "/proc/self/cwd").file("door/evil", "evil");
    assert!(place.unpack(&[tar.end()]).await.is_err());
    assert!(!Path::new("evil").exists());
}

#[tokio::test]
async fn loop_of_symlinks_ends() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x");
    let error = Place::new().unpack(&[tar.end()]).await.unwrap_err();
    assert!(matches!(error, UnpackError::NotADirectory { .. }), "{error}");
}

#[tokio::test]
async fn path_below_a_file_is_refused() {
    let error = Place::new().unpack(&[Tar::new().file("f", "x").file("f/g", "x").end()]).await.unwrap_err();
    assert!(matches!(error, UnpackError::NotADirectory { .. }), "{error}");
}

#[tokio::test]
async fn name_that_is_taken_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.root()).unwrap();
    fs::write(place.root().join("mine"), "mine").unwrap();
    let error = place.unpack(&[Tar::new().file("f", "x").end()]).await.unwrap_err();
    assert!(matches!(error, UnpackError::Exists { .. }), "{error}");
    assert_eq!(tree(&place.root()), expected(&[("mine", "mine")]));
    fs::remove_file(place.root().join("mine")).unwrap();
    place.unpack(&[Tar::new().file("f", "x").end()]).await.unwrap();
    assert_eq!(tree(&place.root()), expected(&[("f", "x")]));
}
