// What the bits depend on, part by part, and what the engine does now.

import { call } from "./api.js";
import { find, make } from "./dom.js";

const REFRESH_MILLISECONDS = 2000;

export function startServer(info) {
  const shown = [];
  if (info.model) shown.push(parts(info.model, info.system_fingerprint, info.fingerprint));
  for (const [name, solver] of Object.entries(info.solvers?.models ?? {})) {
    shown.push(parts(name, solver.system_fingerprint, solver.fingerprint));
  }
  find("fingerprints").replaceChildren(...shown);
  refresh();
}

function parts(name, fingerprint, values) {
  const list = make("dl", { className: "parts" });
  for (const [part, value] of Object.entries({ fingerprint, ...values })) {
    list.append(make("dt", { textContent: part.replaceAll("_", " ") }), make("dd", { textContent: value }));
  }
  return make("section", {}, make("h2", { textContent: name }), list);
}

let before;

async function refresh() {
  if (!document.hidden) {
    try {
      draw(await (await call("metrics")).text());
    } catch (error) {
      find("pulse").textContent = error.message;
      before = undefined;
    }
  }
  setTimeout(refresh, REFRESH_MILLISECONDS);
}

function draw(text) {
  const now = { at: performance.now(), generated: read(text, "generation_tokens_total") };
  const speed = before ? ((now.generated - before.generated) * 1000) / (now.at - before.at) : 0;
  before = now;
  const running = read(text, "num_requests_running") + read(text, "num_puzzles_running");
  const waiting = read(text, "num_requests_waiting") + read(text, "num_puzzles_waiting");
  const asked = read(text, "prefix_cache_queries_total");
  const hits = asked ? read(text, "prefix_cache_hits_total") / asked : 0;
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const meters = {
    running,
    waiting,
    "tokens/s": speed.toFixed(0),
    "cache in use": percent(read(text, "kv_cache_usage_perc")),
    "prompts from cache": percent(hits),
    "tokens so far": now.generated.toLocaleString("en"),
    "puzzles solved": read(text, 'puzzles_total{status="solved"}'),
  };
  find("pulse").textContent = `${running} running · ${waiting} waiting · ${speed.toFixed(0)} tokens/s`;
  const tiles = Object.entries(meters).map(([name, value]) =>
    make("div", {}, make("b", { textContent: value }), make("span", { textContent: name })),
  );
  find("meters").replaceChildren(...tiles);
}

// The value of a metric whose name, behind the prefix and its colon, begins so; 0 where there is none.
function read(text, name) {
  const line = text.split("\n").find((one) => !one.startsWith("#") && one.split(":").slice(1).join(":").startsWith(name));
  return line ? Number(line.split(" ").at(-1)) : 0;
}
