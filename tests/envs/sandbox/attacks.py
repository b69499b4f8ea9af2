"""Programs that mean harm, each with the endings that it may come to. Those that try what is forbidden print what they succeeded in, which must be nothing."""

from __future__ import annotations

import attrs

from envs.sandbox import Ending

HARMLESS = ("exited",)
TIMES = ("cpu", "wall_clock")

_TRY = """
import os, sys, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try:
        result = action()
    except Exception as error:
        return
    if result != -1:
        print(name, repr(result)[:80])
"""


@attrs.frozen
class Attack:
    """A program."""

    code: str
    endings: tuple[Ending, ...] = HARMLESS
    succeeded: str = ""
    """What it prints when it got nowhere."""
    wall_clock: float = 8.0
    """Its limit, in seconds: enough for its CPU time on a busy machine, or little for one that sleeps."""
    only_namespaces: bool = False
    """What defends against it is a namespace; it is not claimed elsewhere."""


ATTACKS: dict[str, Attack] = {
    "endless_loop": Attack("while True: pass", ("cpu",)),
    "sleeps": Attack("import time; time.sleep(1000)", ("wall_clock",), wall_clock=0.5),
    "fork_bomb": Attack("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", (*TIMES, "processes")),
    "fork_chain": Attack(
        "import os, time\nend = time.time() + 30\nwhile time.time() < end:\n    if os.fork(): os._exit(0)\n    os.setsid()",
        HARMLESS,
    ),
    "thread_bomb": Attack(
        "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n    except RuntimeError: break\nprint('x', flush=True)\n"
        "import os; os._exit(0 if threading.active_count() < 60 else 1)",
        (*HARMLESS, "processes"),
        "x\n",
    ),
    "endless_output": Attack("while True: print('x' * 100)", ("output",)),
    "endless_errors": Attack("import sys\nwhile True: sys.stderr.write('x' * 100)", ("output",)),
    "output_without_newline": Attack("import os\nwhile True: os.write(1, b'x' * 65536)", ("output",)),
    "memory_hog": Attack("x = []\nwhile True: x.append(bytearray(1 << 22))", ("exited", "memory")),
    "memory_of_many": Attack(
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(60 << 20)\n        for i in range(0, len(x), 4096): x[i] = 1\n        time.sleep(99)\ntime.sleep(99)",
        ("memory",),
    ),
    "memory_outside_of_processes": Attack(
        _TRY
        + "attempt('memfd', lambda: os.memfd_create('x'))\nattempt('shmget', lambda: libc.shmget(0, 1 << 20, 0o1600))\n"
        "attempt('memfd_secret', lambda: libc.syscall(447, 0))"
    ),
    "fills_the_disk": Attack(
        "import os\nfor i in range(100):\n    with open(f'f{i}', 'wb') as f:\n        for _ in range(4): f.write(b'x' * (1 << 20))\nprint('filled')",
        ("exited", "disk"),
    ),
    "giant_file": Attack("with open('f', 'wb') as f: f.truncate(1 << 40)\nprint('made')"),
    "many_files": Attack(
        "for i in range(1 << 17): open(f'f{i}', 'w').close()\nprint('made')", ("exited", *TIMES, "disk")
    ),
    "many_descriptors": Attack(
        "import os\nheld = []\ntry:\n    while len(held) < 5000: held.append(os.open('/dev/null', os.O_RDONLY))\nexcept OSError: print('x')",
        HARMLESS,
        "x\n",
    ),
    "writes_outside": Attack(
        _TRY
        + "for path in ('/', '/etc', '/usr', '/root', '/home', '/var/tmp', '/dev', '/proc', '/run', '/mnt', OUTSIDE, os.path.dirname(os.__file__)):\n"
        "    attempt(path, lambda: open(path + '/callsheet-attack', 'w'))\n    attempt(path, lambda: os.mkdir(path + '/callsheet-attack'))\n"
        "attempt('stdlib', lambda: open(os.__file__, 'a'))"
    ),
    "reads_outside": Attack(
        _TRY
        + "for path in ('/etc/shadow', '/etc/passwd', '/proc/1/environ', '/proc/1/mem', '/proc/1/maps', '/proc/kcore', OUTSIDE + '/secret.txt'):\n"
        "    attempt(path, lambda: open(path, 'rb').read(100))\n"
        "for path in ('/home', OUTSIDE, '/proc/1/fd', '/proc/1/root', '/proc/1/cwd'):\n    attempt(path, lambda: os.listdir(path) or -1)"
    ),
    "symlinks": Attack(
        _TRY + "os.symlink(OUTSIDE, 'there'); os.symlink('/etc/passwd', 'users'); os.symlink('/proc/1/root', 'root')\n"
        "attempt('dir', lambda: os.listdir('there'))\nattempt('file', lambda: open('there/secret.txt').read())\nattempt('new', lambda: open('there/new', 'w'))\n"
        "attempt('users', lambda: open('users').read())\nattempt('root', lambda: os.listdir('root'))\nattempt('hard', lambda: os.link(OUTSIDE + '/secret.txt', 'hard'))"
    ),
    "sockets": Attack(
        _TRY
        + "import socket\nfor family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_VSOCK, socket.AF_PACKET):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):\n        attempt((family, kind), lambda: socket.socket(family, kind))\n"
        "attempt('connect', lambda: socket.create_connection(('127.0.0.1', PORT), 1))\nattempt('name', lambda: socket.getaddrinfo('localhost', 80) and -1)\n"
        "attempt('io_uring', lambda: libc.syscall(425, 8, ctypes.create_string_buffer(256)))"
    ),
    "zombies": Attack(
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(0.2)\nprint('x')",
        HARMLESS,
        "x\n",
    ),
    "sleeping_daemon": Attack(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)\nprint('x')",
        HARMLESS,
        "x\n",
    ),
    "ignores_signals": Attack(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, lambda *a: None)\n    except (OSError, ValueError): pass\nwhile True: pass",
        ("cpu",),
    ),
    "closes_everything": Attack(
        "import os, time\nos.closerange(0, 1000)\ntime.sleep(1000)", ("wall_clock",), wall_clock=0.5
    ),
    "kills_everything": Attack(
        "import os\nos.kill(-1, 9)\nprint('lives')", ("exited", "signalled"), only_namespaces=True
    ),
    "kills_its_first_process": Attack(
        "import os\nfor pid in (1, os.getppid()):\n    for s in (9, 15, 19, 2):\n        try: os.kill(pid, s)\n        except OSError: pass\nprint('x')",
        HARMLESS,
        "x\n",
        only_namespaces=True,
    ),
    "looks_for_others": Attack(
        "import os\nprint(len([p for p in os.listdir('/proc') if p.isdigit()]))", HARMLESS, "2\n", only_namespaces=True
    ),
    "traces_others": Attack(
        _TRY
        + "buffer = ctypes.create_string_buffer(64)\nfor pid in {1, os.getppid()}:\n    attempt('ptrace', lambda: libc.ptrace(16, pid, 0, 0))\n    attempt('mem', lambda: open(f'/proc/{pid}/mem', 'rb').read(1))\n"
        "    attempt('vm', lambda: libc.process_vm_readv(pid, buffer, 1, buffer, 1, 0))\n    attempt('fd', lambda: os.open(f'/proc/{pid}/fd/1', os.O_WRONLY))\n    attempt('fds', lambda: libc.syscall(438, os.pidfd_open(pid), 1, 0))"
    ),
    "more_rights": Attack(
        _TRY
        + "for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000):\n    attempt('unshare', lambda: libc.unshare(flags))\n    attempt('clone', lambda: libc.syscall(56, flags | 17, 0, 0, 0, 0))\n"
        "attempt('mount', lambda: libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))\nattempt('umount', lambda: libc.umount2(b'/proc', 2))\nattempt('chroot', lambda: os.chroot('/tmp'))\n"
        "attempt('root', lambda: os.setuid(0) if os.getuid() else -1)\nattempt('groups', lambda: os.setgroups([0]))\nattempt('bpf', lambda: libc.syscall(321, 0, 0, 0))\n"
        "attempt('keys', lambda: libc.syscall(250, 0, -3, 0))\nattempt('host', lambda: libc.sethostname(b'x', 1))"
    ),
    "raises_its_limits": Attack(
        _TRY
        + "import resource\nfor what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):\n"
        "    attempt(what, lambda: resource.setrlimit(what, (resource.RLIM_INFINITY,) * 2) or 'raised')"
    ),
    "deep_recursion": Attack(
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(n): return f(n + 1) + 1\nf(0)",
        ("signalled", "exited", "memory"),
    ),
    "recursion_in_c": Attack(
        "x = []\nfor _ in range(10 ** 6): x = [x]\nimport sys; sys.setrecursionlimit(1 << 30)\nrepr(x)\nprint('x')",
        ("signalled", "exited", "memory", *TIMES),
    ),
    "huge_integer": Attack("import sys\nsys.set_int_max_str_digits(0)\nprint(7 ** (10 ** 7))", (*TIMES, "output")),
    "powers": Attack("print(9 ** 9 ** 9)", (*TIMES, "memory", "exited")),
    "regular_expression": Attack("import re; re.match('(a*)*b', 'a' * 40)", ("cpu",)),
    "kills_itself": Attack("import os; os.kill(os.getpid(), 9)", ("signalled",)),
    "aborts": Attack("import os; os.abort()", ("signalled",)),
}
"""By name."""
