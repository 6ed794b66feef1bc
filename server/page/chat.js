// Talk with the model: what it says as it comes, and the digest of it.

import { events } from "./api.js";
import { drawnSeed, question, textOf } from "./asking.js";
import { copyButton, digestLine, find, make, number, runs } from "./dom.js";
import { rendered } from "./markup.js";

export function startChat(model) {
  const turns = [];
  const message = find("message");
  const log = find("log");
  find("deterministic").checked = model.info.engine.default_deterministic || !model.info.engine.allow_fast;
  find("deterministic").disabled = !model.info.engine.allow_fast;
  find("max-tokens").value = Math.min(find("max-tokens").value, model.info.engine.max_model_len >> 1);
  if (!model.chats) message.placeholder = "This model has no chat template: it continues your text.";

  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("chat-form").requestSubmit(find("send"));
  });
  find("new-chat").addEventListener("click", () => {
    find("stop-chat").click();
    turns.length = 0;
    log.replaceChildren();
    message.focus();
  });
  runs(find("chat-form"), find("stop-chat"), async (signal) => {
    const asked = { role: "user", content: message.value };
    const shown = make("div", { className: "answer", ariaBusy: "true" });
    const told = make("div", { className: "told" });
    const turn = make("div", { className: "turn" }, shown, told);
    const bubble = make("div", { className: "turn asked", textContent: asked.content });
    log.append(bubble, turn);
    turn.scrollIntoView({ block: "end" });
    message.value = "";
    turns.push(asked);
    const answer = { role: "assistant", content: "" };
    try {
      await stream(model, turns, answer, { shown, told, signal });
    } catch (error) {
      if (!answer.content && turns.includes(asked)) {
        turns.pop(); // nothing was said to it: it can be asked again
        message.value ||= asked.content;
        bubble.remove();
        turn.remove();
      }
      if (error.name === "AbortError") told.append("stopped");
      throw error;
    } finally {
      shown.ariaBusy = "false";
      if (answer.content && turns.includes(asked)) turns.push(answer);
    }
    if (!model.chats) turns.length = 0;
  });
}

function parameters() {
  const temperature = number("temperature");
  const seed = find("seed").value ? number("seed") : temperature > 0 ? drawnSeed() : undefined;
  return {
    temperature,
    top_p: number("top-p"),
    max_tokens: number("max-tokens"),
    seed,
    deterministic: find("deterministic").checked,
  };
}

async function stream(model, turns, answer, { shown, told, signal }) {
  const asked = parameters();
  const options = { ...asked, stream: true, stream_options: { include_usage: true } };
  const { path, body } = question(model, turns, options);
  let end, usage, started;
  let waiting = false;
  const draw = () => {
    waiting = false;
    shown.replaceChildren(rendered(answer.content));
    const below = document.documentElement.scrollHeight - innerHeight - scrollY;
    if (below < 160) scrollTo(0, document.documentElement.scrollHeight);
  };
  try {
    for await (const event of events(path, { body, signal })) {
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      if (!choice) continue;
      started ??= performance.now();
      answer.content += textOf(choice);
      if (choice.finish_reason) end = choice;
      if (!waiting) requestAnimationFrame(draw); // once a frame, however fast tokens come
      waiting = true;
    }
  } finally {
    draw();
  }
  if (!end) throw new Error("the answer was cut off");
  const seconds = (performance.now() - started) / 1000;
  const facts = [
    `${end.deterministic ? "deterministic" : "fast"}`,
    `${usage.completion_tokens} tokens`,
    `${(usage.completion_tokens / seconds).toFixed(0)} tokens/s`,
    asked.seed === undefined ? [] : `seed ${asked.seed}`,
    end.finish_reason === "length" ? "cut at max tokens" : [],
  ].flat();
  told.append(digestLine(end.digest), facts.join(" · "), copyButton("the answer", () => answer.content, "copy answer"));
}
