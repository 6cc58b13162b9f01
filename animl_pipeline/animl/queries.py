"""What Animl is asked, in GraphQL."""

COUNT = "query Count($input: QueryImagesCountInput!) { imagesCount(input: $input) { count } }"

EXPORT = "query Export($input: ExportInput!) { exportAnnotations(input: $input) { _id } }"

TASK = "query Task($input: QueryTaskInput!) { task(input: $input) { _id status output } }"

PLACES = """query Places($input: QueryProjectsInput) {
  projects(input: $input) {
    _id
    cameraConfigs { _id deployments { _id name startDate location { geometry { coordinates } } } }
  }
}"""
