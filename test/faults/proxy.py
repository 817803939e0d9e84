# The wire between client and server, which breaks at the moments that matter.
#
# It reads the protocol as far as it must: where a message ends, which request will commit, and what the server answered
# to it. It passes on whole messages only, so that a cut is before, after or in the middle of a request as it was meant
# to be. It runs in a process of its own. Sockets are of the Unix domain, in a folder that is nobody else's: the servers
# trust whoever gets there.

import ctypes
import multiprocessing
import os
import random
import selectors
import signal
import socket
import struct

# Where a connection is cut, and how often: the chance that it happens to one request.
CUTS = (
    ("before", 0.0020),             # the request does not reach the server
    ("middle", 0.0005),             # half of it does
    ("after", 0.0020),              # all of it, and nobody waits for the answer
    ("commit sent", 0.0050),        # the same of a request that commits: done or not, the client cannot know
    ("commit answered", 0.0100),    # the server has committed and said so: the answer is dropped
)
NAMES = [name for name, chance in CUTS]
CHANCE = dict(CUTS)
COUNTERS = NAMES + ["requests", "all cut"]


class Cut(Exception):
    pass


class Link:
    """One client's connection and its way on to the server."""

    def __init__(self, proxy, client, path):
        self.proxy, self.client = proxy, client
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(path)
        for side in (client, self.server):
            side.settimeout(10)
        self.from_client = self.from_server = b""
        self.started = False            # the startup message has no type
        self.idle = True                # the server is outside of a transaction block
        self.commits = False            # the request under way ends with a commit
        self.drop_answer = False
        self.failed = False

    def close(self):
        self.client.close()
        self.server.close()

    def client_sent(self):
        data = self.client.recv(65536)
        if not data:
            raise Cut
        self.from_client += data
        end = self.end_of_request()
        if end:
            request, self.from_client = self.from_client[:end], self.from_client[end:]
            self.forward(request)

    def end_of_request(self):
        """Where the last whole request ends: after Sync, a simple query, or anything else that is not of a batch."""
        data, at, end = self.from_client, 0, 0
        if not self.started:
            if len(data) < 4 or len(data) < struct.unpack_from("!i", data)[0]:
                return 0
            self.started = True
            return struct.unpack_from("!i", data)[0]
        while at + 5 <= len(data):
            kind = data[at]
            after = at + 1 + struct.unpack_from("!i", data, at + 1)[0]
            if after > len(data):
                break
            if kind == 81 or kind == 80:                # Query, Parse
                text = data[at + 5:at + 40]
                text = text.lstrip(b"\0").upper()
                self.commits = text.startswith(b"COMMIT") or self.idle and not text.startswith(b"BEGIN")
            if kind not in (80, 66, 68, 69, 67):        # not Parse, Bind, Describe, Execute, Close: they go with a Sync
                end = after
            at = after
        return end

    def forward(self, request):
        proxy = self.proxy
        proxy.count("requests")
        if request[:1] not in b"QP":
            self.server.sendall(request)
            return
        if proxy.hits("before"):
            raise Cut
        if proxy.hits("middle"):
            self.server.sendall(request[:len(request) // 2])
            raise Cut
        self.drop_answer = self.commits and proxy.draw("commit answered")
        self.failed = False
        self.server.sendall(request)
        if self.drop_answer:
            return
        if proxy.hits("commit sent" if self.commits else "after"):
            raise Cut

    def server_sent(self):
        data = self.server.recv(65536)
        if not data:
            raise Cut
        self.from_server += data
        data, at = self.from_server, 0
        while at + 5 <= len(data):
            after = at + 1 + struct.unpack_from("!i", data, at + 1)[0]
            if after > len(data):
                break
            kind = data[at]
            if kind == 69:                              # ErrorResponse
                self.failed = True
            elif kind == 90:                            # ReadyForQuery
                self.idle = data[at + 5] == 73
                if self.drop_answer:
                    if self.idle and not self.failed:
                        self.proxy.count("commit answered")
                        raise Cut
                    self.drop_answer = False
            at = after
        if at and not self.drop_answer:
            self.client.sendall(data[:at])
            self.from_server = data[at:]


class Proxy:
    """Listens at one path for each server behind it."""

    def __init__(self, routes, seed):
        self.routes, self.seed = routes, seed
        self.process = None
        self.counters = multiprocessing.RawArray(ctypes.c_long, len(COUNTERS))
        self.strength = multiprocessing.RawValue(ctypes.c_double, 0.0)
        self.cut_all_now = multiprocessing.RawValue(ctypes.c_int, 0)

    def start(self):
        listening = multiprocessing.get_context("fork").Semaphore(0)
        self.process = multiprocessing.get_context("fork").Process(target=self.run, args=(listening,), daemon=True)
        self.process.start()
        listening.acquire()

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.join()

    def counted(self):
        return dict(zip(COUNTERS, self.counters))

    def cut_all(self):
        """Break every connection there is."""
        self.cut_all_now.value = 1

    # What follows runs in the proxy's process.

    def count(self, name):
        self.counters[COUNTERS.index(name)] += 1

    def draw(self, name):
        return self.random.random() < CHANCE[name] * self.strength.value

    def hits(self, name):
        if not self.draw(name):
            return False
        self.count(name)
        return True

    def run(self, listening):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.random = random.Random(self.seed)
        self.selector = selectors.DefaultSelector()
        self.links = {}
        for path, target in self.routes:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(100)
            self.selector.register(listener, selectors.EVENT_READ, (None, target))
        listening.release()
        parent = os.getppid()
        while os.getppid() == parent:
            for event, mask in self.selector.select(0.2):
                link, action = event.data
                if link is None:
                    self.accept(event.fileobj, action)
                elif link in self.links:
                    self.serve(link, action)
            if self.cut_all_now.value:
                self.cut_all_now.value = 0
                self.count("all cut")
                for link in list(self.links):
                    self.drop(link)

    def accept(self, listener, target):
        client, address = listener.accept()
        try:
            link = Link(self, client, target)
        except OSError:
            client.close()
            return
        self.links[link] = True
        self.selector.register(client, selectors.EVENT_READ, (link, link.client_sent))
        self.selector.register(link.server, selectors.EVENT_READ, (link, link.server_sent))

    def serve(self, link, action):
        try:
            action()
        except (Cut, OSError):
            self.drop(link)

    def drop(self, link):
        del self.links[link]
        self.selector.unregister(link.client)
        self.selector.unregister(link.server)
        link.close()
