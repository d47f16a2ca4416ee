"""Jupyter kernels of an image as runtimes, on a real engine: R from Debian's packages."""

from __future__ import annotations

import pytest

from backendai_ray.core.execution import ExecMode, OutputType
from backendai_ray.core.sessions import Status
from tests.integration.agent.hosting import HostedAgent, kernel_spec, text_of

pytestmark = [pytest.mark.docker, pytest.mark.parametrize("hosted", ["docker"], indirect=True)]


async def test_r(hosted: HostedAgent, r_image: str) -> None:
    offered = await hosted.call("runtimes", r_image)
    assert [(one.name, one.language) for one in offered] == [("ir", "R"), ("python", "python"), ("shell", "sh")]
    spec = kernel_spec(image=r_image)  # its label makes R the default
    await hosted.begin(spec)
    assert await hosted.say(spec, "x <- c(1, 2, 6); mean(x)") == "[1] 3"
    code = "data.frame(x)\nIRdisplay::display_png(as.raw(1:3))\nmessage('to stderr')\ncat('to stdout')"
    shown = await hosted.run(spec, code)
    kinds = dict(shown.console)
    assert "<table" in str(kinds[OutputType.HTML])
    assert kinds[OutputType.MEDIA] == ("image/png", "AQID")
    assert (kinds[OutputType.STDOUT], str(kinds[OutputType.STDERR]).strip()) == ("to stdout", "to stderr")
    failed = await hosted.run(spec, "stop('on purpose')")
    assert failed.exit_code == 1
    assert "on purpose" in text_of(failed)
    assert "mean.default" in await hosted.call("complete", hosted.request(spec, "").route, "mean.d", {})

    begun = await hosted.call("execute", hosted.request(spec, "cat('on'); Sys.sleep(60)", run_id="sleep", wait_s=20))
    assert text_of(begun) == "on"
    await hosted.call("interrupt", hosted.request(spec, "").route)
    assert (await hosted.run(spec, "", run_id="sleep", mode=ExecMode.CONTINUE)).exit_code == 130
    assert await hosted.say(spec, "x[3]") == "[1] 6"

    await hosted.kill()  # the kernel and its state do not depend on the agent
    await hosted.start()
    assert await hosted.say(spec, "x[2]") == "[1] 2"
    assert (await hosted.run(spec, "tools::pskill(Sys.getpid(), 9)")).exit_code == 137
    assert "not found" in await hosted.say(spec, "x")
    await hosted.end(spec)


async def test_a_runtime_that_the_image_lacks_is_refused(hosted: HostedAgent, default_image: str) -> None:
    spec = kernel_spec(image=default_image, runtime="ir")
    await hosted.call("create_kernels", [spec])
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert "has no runtime 'ir'; it has: python, shell" in fact.message
    assert not fact.retryable
    await hosted.call("acknowledge", [spec.kernel_id])
    shell = kernel_spec(image=default_image, runtime="shell")
    await hosted.begin(shell)
    assert await hosted.say(shell, "X=5; echo $((X + 1))") == "6"
    await hosted.end(shell)
