// Unpacks the libraries and the data that the page carries, then draws.
(async () => {
  async function unpack(element) {
    const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  try {
    for (const packed of document.querySelectorAll('script[data-library][type="text/plain"]')) {
      const library = document.createElement("script");
      library.textContent = await unpack(packed);
      document.head.append(library);
      packed.remove();
    }
    const data = document.getElementById("data");
    const text = data.type === "text/plain" ? await unpack(data) : data.textContent;
    await draw(JSON.parse(text));
    document.body.dataset.ready = "true";
  } catch (error) {
    document.body.dataset.failed = String(error);
    console.error(error);
  }
})();
