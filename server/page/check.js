// The server checks itself under load, and this shows how far it is and what it has found.

import { events } from "./api.js";
import { digestLine, find, make, number, runs } from "./dom.js";

export function startCheck(model) {
  const fast = find("check-fast");
  fast.checked = model.info.engine.allow_fast;
  fast.disabled = !model.info.engine.allow_fast;
  runs(find("check-form"), find("stop-check"), async (signal) => {
    const modes = fast.checked ? ["deterministic", "fast"] : ["deterministic"];
    const shown = Object.fromEntries(modes.map((mode) => [mode, new Verdict(mode, number("check-runs"))]));
    find("verdicts").replaceChildren(...Object.values(shown).map((one) => one.section));
    const prompt = find("check-prompt").value;
    const body = { prompt, runs: number("check-runs"), max_tokens: number("check-tokens"), modes };
    for await (const event of events("check", { body, signal })) {
      if (event.progress) shown[event.progress.mode].progress(event.progress);
      else for (const mode of modes) shown[mode].end(event.by_mode[mode]);
    }
  });
}

class Verdict {
  constructor(mode, total) {
    this.mode = mode;
    this.told = make("p", { className: "verdict", role: "status", textContent: "waiting" });
    this.squares = make("div", { className: "squares", ariaHidden: "true" });
    this.squares.append(...Array.from({ length: total }, () => make("i")));
    this.bar = make("progress", { className: "sr-only", max: total, value: 0, ariaLabel: `${mode} runs` });
    this.found = make("div");
    const title = mode === "fast" ? "Fast, the control" : "Deterministic";
    const heading = make("h2", { textContent: title });
    this.section = make("section", { ariaLabel: title }, heading, this.told, this.bar, this.squares, this.found);
  }

  progress({ runs: done, total, divergent_runs: other, unique_digests: digests, seconds }) {
    // What is told is how many differ, not which: of what has come since, they are the last.
    const fresh = [...this.squares.children].slice(this.bar.value, done);
    const others = other - this.squares.querySelectorAll(".other").length;
    fresh.forEach((square, place) => (square.className = place < fresh.length - others ? "same" : "other"));
    this.bar.value = done;
    this.tell(digests, `in ${done} of ${total} runs · ${other} unlike the answer alone · ${seconds.toFixed(1)} s`);
  }

  tell(digests, rest) {
    const count = `${digests} unique ${digests === 1 ? "digest" : "digests"}`;
    this.told.replaceChildren(make("strong", { textContent: count }), ` ${rest}`);
  }

  end(result) {
    const [prompt] = result.prompts;
    const outputs = `${result.unique_outputs} unique ${result.unique_outputs === 1 ? "output" : "outputs"}`;
    this.tell(result.unique_digests, `in ${result.runs} runs · ${outputs} · ${result.seconds.toFixed(1)} s`);
    this.found.append(this.answer("The answer alone", prompt.expected));
    const parted = result.first_divergence;
    if (parted) this.found.append(this.answer(`First that differs, run ${parted.run + 1}: ${parted.what}`, parted.got));
    else if (this.mode === "fast") this.found.append(make("p", { textContent: "The control found no difference: more runs or more tokens may." }));
  }

  answer(title, answer) {
    const text = make("p", { className: "tokens", textContent: answer.text });
    return make("div", { className: "found" }, make("small", { textContent: title }), text, digestLine(answer.digest));
  }
}
