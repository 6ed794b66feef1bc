// Elements are made, never parsed: what a model or a server says is only ever text.

export const find = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const number = (id) => find(id).valueAsNumber;

// A form whose work can be stopped: one at a time, and an error is one line of its panel.
export function runs(form, stop, work) {
  const panel = form.closest("section");
  const line = panel.querySelector(".error");
  const start = form.querySelector("button.main");
  let controller;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (controller) return;
    controller = new AbortController();
    line.textContent = "";
    start.disabled = !(stop.disabled = false);
    try {
      await work(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") line.textContent = error.message;
    } finally {
      controller.abort(); // whatever it still has going
      controller = undefined;
      start.disabled = !(stop.disabled = true);
    }
  });
  stop.addEventListener("click", () => controller?.abort());
}

export function copyButton(what, text, label = "copy") {
  const button = make("button", { type: "button", className: "copy", textContent: label });
  button.ariaLabel = `copy ${what}`;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "copied";
    } catch {
      button.textContent = "not allowed"; // browsers want https, or this machine
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

// Equal digests have equal colours, so that an eye finds the odd one.
export function digestLine(digest) {
  const hues = [0, 4, 8].map((at) => `hsl(${(parseInt(digest.slice(at, at + 4), 16) * 360) / 65536} 60% 50%)`);
  const flag = make("i", { ariaHidden: "true" });
  flag.style.background = `linear-gradient(90deg, ${hues[0]} 33%, ${hues[1]} 33% 67%, ${hues[2]} 67%)`;
  const code = make("code", { textContent: digest, title: digest });
  return make("div", { className: "digest" }, flag, code, copyButton("the digest", () => digest));
}
