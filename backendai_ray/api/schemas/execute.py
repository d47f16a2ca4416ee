"""Running code: the bodies of `execute` and `complete`, and what comes back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class ExecuteOptions(BaseModel):
    """Options of a run."""

    model_config = ConfigDict(extra="forbid")

    clean: str | None = Field(None, description="Batch: command that cleans up first; `*`: the image's.")
    build: str | None = Field(None, description="Batch: command that builds; `*`: the image's.")
    build_log: bool = Field(False, validation_alias=AliasChoices("buildLog", "build_log"))
    exec: str | None = Field(None, description="Batch: command that runs; `*`: the image's.")
    row: int | None = Field(None, ge=0, description="Complete: the cursor's row.")
    col: int | None = Field(None, ge=0, description="Complete: the cursor's column.")
    line: str | None = Field(None, description="Complete: the line before the cursor.")
    post: str | None = Field(None, description="Complete: the text after the cursor.")
    ack: int | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("ack", "after_seq"),
        description="The `seq` of the last answer that arrived; output after it is sent (again). Without it, "
        "what was answered before counts as received.",
    )

    def for_runner(self) -> dict[str, Any]:
        """Return the options that the kernel's runner is told, under their official names."""
        told = {
            "clean": self.clean,
            "build": self.build,
            "buildLog": self.build_log,
            "exec": self.exec,
            "row": self.row,
            "col": self.col,
            "line": self.line,
            "post": self.post,
        }
        return {name: value for name, value in told.items() if value not in (None, False)}


class Execute(BaseModel):
    """Code to run, or how to go on with a run."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["query", "batch", "complete", "continue", "input", "user-input"] | None = Field(
        None, description="`query` if absent (`complete` when a cursor is given)."
    )
    code: str | None = Field(None, description="Code; with `input`, the line that the program waits for.")
    run_id: str | None = Field(
        None,
        validation_alias=AliasChoices("runId", "run_id"),
        description="Names the run. A known one never runs twice; needed to continue.",
    )
    options: ExecuteOptions | None = Field(None)


class Complete(BaseModel):
    """Code to complete."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field("")
    options: ExecuteOptions | None = Field(None)


class RunResult(BaseModel):
    """Where a run stands, and its output since the last answer."""

    run_id: str = Field(alias="runId")
    status: str = Field(
        description="`continued`, `waiting-input`, `clean-finished`, `build-finished`, `finished`, `exec-timeout`."
    )
    exit_code: int | None = Field(None, alias="exitCode")
    options: dict[str, Any] = Field(description="With `waiting-input`: `is_password`.")
    console: list[tuple[str, Any]] = Field(
        description="`[type, data]` in the order of writing; types: `stdout`, `stderr`, `media`, `html`, `log`."
    )
    files: list[dict[str, Any]] = Field(default_factory=list)
    seq: int = Field(description="Acknowledge up to here with `options.ack` of the next call.")


class ExecuteAnswer(BaseModel):
    """The answer to `execute`."""

    result: RunResult


class CompleteAnswer(BaseModel):
    """The answer to `complete`."""

    result: dict[str, Any] = Field(description="`status` is `finished`, `completions` a list of texts.")
