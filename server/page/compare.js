// One prompt, many times in both modes: does it get beside others the answer that it gets alone?

import { json } from "./api.js";
import { question } from "./asking.js";
import { digestLine, find, make, number, runs } from "./dom.js";

const MODES = ["deterministic", "fast"];
const AT_A_TIME = 4; // browsers open six connections to a server

export function startCompare(model) {
  runs(find("compare-form"), find("stop-compare"), async (signal) => {
    const modes = model.info.engine.allow_fast ? MODES : MODES.slice(0, 1);
    const total = number("compare-runs");
    const columns = modes.map((mode) => new Column(mode, total));
    find("columns").replaceChildren(...columns.map((column) => column.section));
    for (const column of columns) {
      let started = 0;
      const next = async () => {
        started += 1;
        column.answers.push(await answer(model, column.mode, signal));
        column.draw(columns[0]);
      };
      const before = performance.now();
      await next(); // alone
      // Each of the others arrives in a step of its own, while those before it are being answered.
      const apart = (performance.now() - before) / (AT_A_TIME + 1);
      const several = async (_, place) => {
        await new Promise((resolve) => setTimeout(resolve, place * apart));
        while (started < total) await next();
      };
      await Promise.all(Array.from({ length: AT_A_TIME }, several));
    }
  });
}

async function answer(model, mode, signal) {
  const parameters = {
    temperature: number("compare-temperature"),
    seed: number("compare-seed"),
    max_tokens: number("compare-tokens"),
    deterministic: mode === "deterministic",
    logprobs: model.chats ? true : 0,
  };
  const turns = [{ role: "user", content: find("compare-prompt").value }];
  const { path, body } = question(model, turns, parameters);
  const [choice] = (await json(path, { body, signal })).choices;
  const { content, tokens } = choice.logprobs;
  return { digest: choice.digest, tokens: tokens ?? content.map((one) => one.token) };
}

class Column {
  constructor(mode, total) {
    this.mode = mode;
    this.total = total;
    this.answers = [];
    this.told = make("p", { className: "verdict", role: "status", textContent: "waiting" });
    this.found = make("div");
    const title = mode[0].toUpperCase() + mode.slice(1);
    this.section = make("section", { ariaLabel: title }, make("h2", { textContent: title }), this.told, this.found);
  }

  draw(first) {
    const counts = new Map();
    for (const one of this.answers) {
      counts.set(one.digest, { one, count: (counts.get(one.digest)?.count ?? 0) + 1 });
    }
    const digests = make("strong", { textContent: `${counts.size} ${counts.size === 1 ? "digest" : "digests"}` });
    this.told.replaceChildren(digests, ` in ${this.answers.length} of ${this.total} runs`);
    const [reference] = first.answers;
    this.found.replaceChildren(...[...counts.values()].map(({ one, count }) => finding(one, count, reference, this === first)));
  }
}

function finding(one, count, reference, own) {
  const parted = one.tokens.findIndex((token, place) => token !== reference.tokens[place]);
  const place = parted < 0 ? one.tokens.length : parted;
  const text = make("p", { className: "tokens" }, one.tokens.slice(0, place).join(""));
  if (parted >= 0) {
    text.append(make("mark", { className: "first", textContent: one.tokens[place] }));
    text.append(make("mark", { textContent: one.tokens.slice(place + 1).join("") }));
  }
  const same = one.digest === reference.digest;
  let note = same && own ? "" : same ? "the deterministic answer" : "the same tokens, by other logits";
  if (parted >= 0) note = `parts at token ${place + 1}`;
  const told = [count === 1 ? "1 run" : `${count} runs`, note].filter(Boolean).join(" · ");
  return make("div", { className: "found" }, digestLine(one.digest), text, make("small", { textContent: told }));
}
