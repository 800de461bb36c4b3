"""A stand-in for gcloud. Its slices are folders of this machine, and its hosts are processes.

FAKE_CLOUD names a folder:

  calls.log           all calls: each is a line with a JSON list
  host.json           the environment of a host besides HOME; {index} stands for the host's
                      number over all slices, {hosts} for the number of all hosts
  workers             the number of hosts of a slice
  refuses             an optional message, with which all calls are refused
  resources/NAME      the state of a queued resource, then the names of its nodes, one a line
  nodes/NODE/state    the state of a slice
  nodes/NODE/W        the home folder of worker W
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ['FAKE_CLOUD'])
WORKERS = int((CLOUD / 'workers').read_text())


def main() -> None:
  words = sys.argv[1:]
  with open(CLOUD / 'calls.log', 'a') as log:
    log.write(json.dumps(words) + '\n')
  assert words[:2] == ['compute', 'tpus'], words
  if (CLOUD / 'refuses').exists():
    sys.exit(f'ERROR: (gcloud) {(CLOUD / "refuses").read_text()}')
  kind, action, *rest = words[2:]
  options = dict(word[2:].partition('=')[::2] for word in rest if word.startswith('--'))
  names = [word for word in rest if not word.startswith('--')]
  assert options['project'] == 'my-project' and options['zone'] == 'my-zone'
  globals()[f'{kind}_{action}'.replace('-', '_')](names, options)


def queued_resources_create(names, options) -> None:
  resource = CLOUD / 'resources' / names[0]
  if resource.exists():
    sys.exit('ERROR: (gcloud) ALREADY_EXISTS')
  if 'node-count' in options:
    nodes = [f'{options["node-prefix"]}-{i}' for i in range(int(options['node-count']))]
  else:
    nodes = [options['node-id']]
  resource.parent.mkdir(exist_ok=True)
  resource.write_text('\n'.join(['ACTIVE', *nodes]) + '\n')
  for node in nodes:
    for worker in range(WORKERS):
      (CLOUD / 'nodes' / node / str(worker)).mkdir(parents=True)
    (CLOUD / 'nodes' / node / 'state').write_text('READY')


def queued_resources_describe(names, options) -> None:
  print(_read(CLOUD / 'resources' / names[0]).splitlines()[0])


def queued_resources_delete(names, options) -> None:
  assert 'force' in options
  resource = CLOUD / 'resources' / names[0]
  for node in _read(resource).splitlines()[1:]:
    shutil.rmtree(CLOUD / 'nodes' / node, ignore_errors=True)
  resource.unlink()


def tpu_vm_describe(names, options) -> None:
  print(_read(CLOUD / 'nodes' / names[0] / 'state'))


def tpu_vm_scp(names, options) -> None:
  source, target = names
  node, _, path = target.partition(':')
  for worker in _workers(node, options):
    shutil.copy(source, CLOUD / 'nodes' / node / str(worker) / path)


def tpu_vm_ssh(names, options) -> None:
  (node,) = names
  workers = _workers(node, options)
  with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
    codes = list(pool.map(lambda worker: _run(node, worker, options['command']), workers))
  sys.exit(next((code for code in codes if code), 0))


def _run(node: str, worker: int, command: str) -> int:
  home = CLOUD / 'nodes' / node / str(worker)
  nodes = sorted(path.name for path in (CLOUD / 'nodes').iterdir())
  index, hosts = nodes.index(node) * WORKERS + worker, len(nodes) * WORKERS
  env = {
    name: value.format(index=index, hosts=hosts)
    for name, value in json.loads((CLOUD / 'host.json').read_text()).items()
  }
  env |= {'HOME': str(home), 'FAKE_WORKER': str(worker)}
  print(f'SSH: Attempting to connect to worker {worker}...', file=sys.stderr)
  return subprocess.run(['bash', '-c', command], cwd=home, env=env, check=False).returncode


def _workers(node: str, options) -> list[int]:
  if _read(CLOUD / 'nodes' / node / 'state') != 'READY':
    sys.exit('ERROR: (gcloud.compute.tpus.tpu-vm.ssh) the node is not reachable')
  return list(range(WORKERS)) if options['worker'] == 'all' else [int(options['worker'])]


def _read(path: pathlib.Path) -> str:
  if not path.exists():
    sys.exit(f'ERROR: (gcloud) NOT_FOUND: Resource {path.name} was not found')
  return path.read_text()


if __name__ == '__main__':
  main()
