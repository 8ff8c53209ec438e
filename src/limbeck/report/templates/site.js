(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const facets = { family: form.elements.family, task: form.elements.task, verdict: form.elements.verdict };
  const search = form.elements.q;
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const rows = [...document.querySelectorAll("#systems tr[data-task]")].map((row) => ({
    row,
    family: [row.parentElement.dataset.family],
    task: [row.dataset.task],
    verdict: row.dataset.states.split("|"),
    text: plain(row.textContent + " " + row.dataset.searched),
  }));
  const chips = [...facets.family].map((input) => ({
    value: input.value, input, box: input.parentElement, count: input.parentElement.querySelector("b"),
  }));
  const values = { family: chips.map((chip) => chip.value) };
  for (const name of ["task", "verdict"]) values[name] = [...facets[name].options].map((option) => option.value);

  function show() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    const fits = (one, except) => words.every((word) => one.text.includes(word)) && Object.keys(facets).every(
      (name) => name === except || !facets[name].value || one[name].includes(facets[name].value));
    for (const one of rows) one.row.hidden = !fits(one);
    for (const body of document.querySelectorAll("#systems tbody")) {
      const inside = rows.filter((one) => one.row.parentElement === body);
      const shown = inside.filter((one) => !one.row.hidden).length;
      body.hidden = shown === 0;
      body.querySelector(".count").textContent = shown === inside.length ? shown : `${shown} of ${inside.length}`;
    }
    for (const chip of chips) {
      const count = rows.filter((one) => fits(one, "family") && (!chip.value || one.family[0] === chip.value)).length;
      chip.count.textContent = count;
      chip.box.classList.toggle("empty", count === 0);
    }
    const shown = rows.filter((one) => !one.row.hidden).length;
    const all = `${rows.length} system${rows.length === 1 ? "" : "s"}`;
    form.elements.found.textContent = shown === rows.length ? all : `${shown} of ${all}`;
    document.getElementById("nothing").hidden = shown > 0;
    form.querySelector("button[type=reset]").hidden = !state().toString();
  }

  function state() {
    const chosen = new URLSearchParams();
    for (const name of Object.keys(facets)) if (facets[name].value) chosen.set(name, facets[name].value);
    if (search.value.trim()) chosen.set("q", search.value.trim());
    return chosen;
  }

  function write() {
    const hash = state().toString();
    if (hash === location.hash.slice(1)) return;
    // Whole, since in a frame "#..." alone would be taken from the address of the page around it.
    history.replaceState(null, "", location.href.split("#")[0] + (hash && "#" + hash));
  }

  function read() {
    const chosen = new URLSearchParams(location.hash.slice(1));
    const known = (name) => (values[name].includes(chosen.get(name)) ? chosen.get(name) : "");
    // One by one: a list of radio buttons cannot be set to "".
    for (const chip of chips) chip.input.checked = chip.value === known("family");
    for (const name of ["task", "verdict"]) facets[name].value = known(name);
    search.value = chosen.get("q") ?? "";
    show();
  }

  form.addEventListener("input", () => { show(); write(); });
  form.addEventListener("reset", () => setTimeout(() => { show(); write(); search.focus(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  form.hidden = false;
  document.getElementById("families").hidden = true;
  read();
})();
