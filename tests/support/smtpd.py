"""A mail server on loopback (aiosmtpd) that writes each mail into a directory as NUMBER.json.

usage: smtpd.py DIR PORT none|starttls|tls [CERT KEY] ; the login, if one is wanted, is in $LOGIN as user:password.
While there is a file DIR/refuse its text is the answer to every mail; addresses in DIR/unknown are not taken. The
process whose number is in DIR/kill is killed when the next mail is taken, before it is told so.
"""

import asyncio
import email
import email.policy
import itertools
import json
import os
import signal
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

directory, port, protection = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = None
if protection != "none":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[4], sys.argv[5])
login = os.environ.get("LOGIN")
numbers = itertools.count(1)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        try:
            with open(os.path.join(directory, "unknown")) as unknown:
                if address in unknown.read().split():
                    return "550 5.1.1 there is nobody of that name"
        except FileNotFoundError:
            pass
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        try:
            with open(os.path.join(directory, "refuse")) as refuse:
                return refuse.read().strip()
        except FileNotFoundError:
            pass
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        number = next(numbers)
        told = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "subject": str(mail["subject"]),
            "body": mail.get_content(),
            "headers": {name.lower(): str(value) for name, value in mail.items()},
            "raw": envelope.original_content.decode("utf-8", "replace"),
            "tls": session.ssl is not None or protection == "tls",
            "login": session.auth_data and session.auth_data.login.decode(),
            "ehlo": session.host_name,
        }
        name = os.path.join(directory, f"{number:04}.json")
        with open(name + ".new", "w") as file:
            json.dump(told, file)
        os.rename(name + ".new", name)
        try:
            with open(os.path.join(directory, "kill")) as kill:
                os.kill(int(kill.read()), signal.SIGKILL)
            os.remove(os.path.join(directory, "kill"))
        except FileNotFoundError:
            pass
        return f"250 2.0.0 taken as number {number}"


def authenticate(server, session, envelope, mechanism, data):
    wanted = login.encode().split(b":", 1)
    return AuthResult(success=[data.login, data.password] == wanted, handled=False, auth_data=data)


def protocol():
    return SMTP(
        Handler(),
        hostname="mail.test",
        tls_context=context if protection == "starttls" else None,
        require_starttls=protection == "starttls",
        authenticator=authenticate if login else None,
        auth_required=bool(login),
        auth_require_tls=False,
    )


async def serve():
    server = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", port, ssl=context if protection == "tls" else None
    )
    open(os.path.join(directory, "ready"), "w").close()
    await server.serve_forever()


asyncio.run(serve())
