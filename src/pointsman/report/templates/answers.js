// Shows, hides and sorts cards that are in the page already. It reads numbers from data attributes and never writes HTML.
(() => {
  "use strict";
  const root = document.querySelector(".answers");
  if (!root) return;
  const filters = new Map([...root.querySelectorAll("[data-filter]")].map((node) => [node.dataset.filter, node]));
  const chosen = (name) => (filters.has(name) ? filters.get(name).value : "");
  const numbers = (node, name) => (node.dataset[name] ? node.dataset[name].split(" ") : []);
  const cards = [...root.querySelectorAll("article")].map((node, place) => ({
    node,
    place,
    doubt: Number(node.dataset.doubt),
    category: node.dataset.c,
    text: null,
    answers: [...node.querySelectorAll(".answer")].map((answer) => ({
      node: answer,
      base: answer.classList.contains("base"),
      stages: numbers(answer, "s"),
      verdicts: numbers(answer, "v"),
      disputed: "disputed" in answer.dataset,
    })),
  }));
  const count = root.querySelector(".count");
  const keys = root.querySelector(".keys");
  let order = "";

  const update = () => {
    const words = chosen("search").toLowerCase().split(/\s+/).filter(Boolean);
    const [stage, category, verdict] = ["Stage", "Category", "Verdict"].map(chosen);
    const disputed = filters.get("disputed").checked;
    const narrowed = stage || verdict || disputed;
    let prompts = 0;
    let answers = 0;
    for (const card of cards) {
      let hits = 0;
      for (const answer of card.answers) {
        const hit =
          (!stage || answer.stages.includes(stage)) &&
          (!verdict || answer.verdicts.includes(verdict)) &&
          (!disputed || answer.disputed);
        hits += hit ? 1 : 0;
        answer.node.hidden = !hit && !answer.base;
        answer.node.classList.toggle("aside-hit", Boolean(narrowed) && !hit);
      }
      let shown = hits > 0 && (!category || card.category === category);
      if (shown && words.length) {
        card.text ??= card.node.textContent.toLowerCase();
        shown = words.every((word) => card.text.includes(word));
      }
      card.node.hidden = !shown;
      prompts += shown ? 1 : 0;
      answers += shown ? hits : 0;
    }
    if (chosen("order") !== order) {
      order = chosen("order");
      const sorted = [...cards].sort((a, b) => (order ? b.doubt - a.doubt : 0) || a.place - b.place);
      root.append(...sorted.map((card) => card.node));
    }
    count.textContent = `${prompts} of ${cards.length} prompts, ${answers} answers`;
  };

  const clear = () => {
    for (const node of filters.values()) {
      if (node.type === "checkbox") node.checked = false;
      else if (node.dataset.filter !== "order") node.value = "";
    }
    update();
  };

  const go = (node) => {
    node.scrollIntoView({ block: "start" });
    node.focus({ preventScroll: true });
  };

  const step = (by) => {
    const shown = [...root.querySelectorAll("article:not([hidden])")];
    const here = shown.indexOf(document.activeElement && document.activeElement.closest("article"));
    const near = shown.findIndex((node) => node.getBoundingClientRect().bottom > 80);
    const from = here >= 0 ? here + by : near < 0 ? shown.length - 1 : near;
    const next = shown[Math.min(Math.max(from, 0), shown.length - 1)];
    if (next) go(next);
  };

  const follow = () => {
    const node = document.getElementById(location.hash.slice(1));
    const card = node && node.closest(".answers article");
    if (!card) return;
    if (card.hidden) clear();
    go(card);
  };

  let waiting = 0;
  root.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      document.activeElement.blur();
      clear();
    } else if (typing) {
      return;
    } else if (event.key === "j" || event.key === "k") {
      step(event.key === "j" ? 1 : -1);
    } else if (event.key === "/") {
      filters.get("search").focus();
      filters.get("search").scrollIntoView({ block: "nearest" });
    } else if (event.key === "?") {
      keys.hidden = !keys.hidden;
      if (!keys.hidden) keys.scrollIntoView({ block: "nearest" });
    } else {
      return;
    }
    event.preventDefault();
  });
  addEventListener("hashchange", follow);
  root.querySelector(".filters").hidden = false;
  update();
  if (location.hash) follow();
})();
