//! Imports what nobody gives.

wit_bindgen::generate!({
    inline: "
        package example:stranger@1.0.0;
        interface api { answer: func() -> u32; }
        world stranger { import api; }
    ",
    world: "example:stranger/stranger",
});

fn main() {
    println!("{}", example::stranger::api::answer());
}
