// Parts that several pages have.

function facts(list) {
  const element = make("dl", "facts");
  for (const [name, value, bad] of list) element.append(make("dt", "", name), make("dd", bad ? "bad" : "", value));
  return element;
}

// Buttons of which one at most is pressed; pressing it again releases it.
function choice(buttons, onChoose) {
  buttons.forEach(([button, value]) => {
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      for (const [other] of buttons) other.setAttribute("aria-pressed", String(pressed && other === button));
      onChoose(pressed ? value : null);
    });
  });
  return buttons.map(([button]) => button);
}
