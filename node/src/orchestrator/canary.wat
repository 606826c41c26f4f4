;; The component of a lab's canary: it ends well at once. `canary.wasm` is its binary form, by `wasm-tools parse`.
(component
  (core module $main
    (func (export "run") (result i32) i32.const 0))
  (core instance $main (instantiate $main))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
