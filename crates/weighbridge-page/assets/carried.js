// The document that the page carries: JSON in gzip, in base64.

async function unpacked(id) {
  const element = byId(id);
  if (!element) return null;
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser cannot unpack the data of this page. Chrome 80, Firefox 113 and Safari 16.4 can, and later ones.");
  }
  const packed = atob(element.textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i += 1) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Shows the document if there is one; otherwise somebody will.
function showCarried(show) {
  unpacked("data").then((document) => document && show(document)).catch((error) => {
    say(error.message);
    throw error;
  });
}

// A message in the place of what cannot be shown; none takes it away.
function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}
