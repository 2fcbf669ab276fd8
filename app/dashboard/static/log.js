// The log's new lines, by Server-Sent Events while the tab is seen. Where the stream is refused, by asking, until it opens again.
"use strict";
(() => {
  const log = document.getElementById("log");
  if (!log) return;
  const KINDS = ["state", "phase", "started", "data", "checkpoint", "warning", "log"];
  const OVER = ["succeeded", "failed", "cancelled"];
  const MOST = 2000, AGAIN_MS = 3000;
  const lines = log.firstElementChild;
  let seen = Math.max(0, ...Array.from(lines.children, (line) => Number(line.dataset.seq)));
  let over = log.dataset.active !== "true";
  let stream = null;
  log.scrollTop = log.scrollHeight;

  function append(event) {
    if (event.seq <= seen) return;
    seen = event.seq;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const line = document.createElement("li");
    line.className = `of-${event.kind}`;
    line.dataset.seq = event.seq;
    const time = document.createElement("time");
    time.dateTime = event.at;
    time.textContent = event.at.slice(11, 19);
    const kind = document.createElement("span");
    kind.className = "kind";
    kind.textContent = event.kind;
    const message = document.createElement("span");
    message.textContent = event.message;
    line.append(time, " ", kind, " ", message);
    lines.append(line);
    if (lines.children.length > MOST) lines.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
    if (event.kind === "state" && OVER.includes(event.data?.status)) { over = true; close(); }
  }

  function close() { stream?.close(); stream = null; }

  function open() {
    if (over || stream || document.hidden) return;
    stream = new EventSource(`${log.dataset.events}?after=${seen}`);
    for (const kind of KINDS) stream.addEventListener(kind, (message) => append(JSON.parse(message.data)));
    stream.addEventListener("error", () => {
      // It connects again by itself, from the last event it had, unless it was refused.
      if (stream?.readyState === EventSource.CLOSED) { close(); setTimeout(ask, AGAIN_MS); }
    });
  }

  async function ask() {
    try {
      const answer = await fetch(`${log.dataset.events}?after=${seen}`, { headers: { Accept: "application/json" } });
      if (answer.ok) (await answer.json()).data.forEach(append);
    } catch { /* away: the page says so by its other polls, and open() comes back here */ }
    open();
  }

  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
  window.addEventListener("pagehide", close);
  open();
})();
