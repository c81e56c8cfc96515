"""Debian's nginx in front of a hub, with the configuration that ``docs/nginx.conf`` recommends."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .serving import ROOT, Server, free_port, make_certificate, running

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin") or ""
RECOMMENDED = ROOT / "docs" / "nginx.conf"

behind_nginx = pytest.mark.skipif(not NGINX, reason="needs Debian's nginx: apt-get install nginx-light")

MAIN = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
"""Debian's own, which compresses more than it should."""

HTTP_1_0 = {"proxy_http_version 1.1;": "", 'proxy_set_header Connection "";': ""}
"""What is to be left out for nginx to talk to the hub as it does by default."""

BARE = "server {\n    listen 443 ssl http2;\n    location / { proxy_pass http://127.0.0.1:8000; }\n}\n"
"""The least that passes requests on, everything else by nginx's defaults."""


class Nginx(Server):
    """One nginx on fixed ports, plain and TLS, which can be killed and started again.

    ``changes`` are made to the recommended configuration; each must find something to change.
    """

    def __init__(
        self, hub: Server, *, folder: Path, changes: Mapping[str, str] | None = None, site: str | None = None
    ) -> None:
        super().__init__(folder=folder)
        self.tls_port = free_port()
        self.certificate = make_certificate(folder)
        own = {
            "127.0.0.1:8000": f"127.0.0.1:{hub.port}",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port}; listen 127.0.0.1:{self.tls_port} ssl http2;",
        }
        if site is None:
            site = RECOMMENDED.read_text()
            own["/etc/letsencrypt/live/hub.example/fullchain.pem"] = str(self.certificate)
            own["/etc/letsencrypt/live/hub.example/privkey.pem"] = str(self.certificate)
        else:
            own["listen 443 ssl http2;"] = f"listen 127.0.0.1:{self.port};"
        for old, new in {**own, **(changes or {})}.items():
            assert old in site, f"there is no {old!r} in the configuration"
            site = site.replace(old, new)
        user = f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else ""
        (folder / "site.conf").write_text(site)
        (folder / "main.conf").write_text(MAIN.format(folder=folder, user=user))
        self.command = [NGINX, "-p", str(folder), "-c", str(folder / "main.conf"), "-e", "stderr"]


@contextlib.contextmanager
def in_front_of(
    hub: Server, *, folder: Path, changes: Mapping[str, str] | None = None, site: str | None = None
) -> Iterator[Nginx]:
    """A running nginx for the length of a `with` block; afterwards nothing of it is left."""
    with running(Nginx(hub, folder=folder, changes=changes, site=site)) as nginx:
        yield nginx
